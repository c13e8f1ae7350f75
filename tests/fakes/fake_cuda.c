/* A CUDA driver without a GPU: device memory is host memory, so that what runs on it can be looked at.
 *
 * It is as strict as the real one where a caller can go wrong: no call works before cuInit, memory wants a current
 * context on the calling thread, addresses must lie inside a living allocation, and a copy to the host arrives only
 * when its stream is synchronized.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_CONTEXT = 201 };
enum { MOST = 256 };

typedef struct { char *address; size_t bytes; } Allocation;
typedef struct { void *stream, *host; char *device; size_t bytes; } Copy;

static struct { int devices, initialized, init_code; size_t memory, used; int contexts, streams, events; } state;
static Allocation allocations[MOST];
static Copy copies[MOST];
static char failing[64];
static int failing_code;
static __thread int depth;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void fake_reset(int devices, int init_code, size_t memory) {
    for (int i = 0; i < MOST; i++) free(allocations[i].address);
    memset(allocations, 0, sizeof allocations);
    memset(copies, 0, sizeof copies);
    memset(&state, 0, sizeof state);
    failing[0] = 0;
    state.devices = devices;
    state.init_code = init_code;
    state.memory = memory;
}
void fake_fail(const char *name, int code) { strncpy(failing, name, sizeof failing - 1); failing_code = code; }
int fake_has_context(void) { return depth > 0; }
int fake_alive(void) {
    int alive = state.contexts + state.streams + state.events;
    for (int i = 0; i < MOST; i++) alive += allocations[i].address != NULL;
    return alive;
}

/* one call at a time, as far as what is counted goes: the callers are threads that hold no lock of their own */
static void leave(pthread_mutex_t **held) { pthread_mutex_unlock(*held); }

#define ENTER(needs_context)                                          \
    __attribute__((cleanup(leave))) pthread_mutex_t *held = &lock;    \
    pthread_mutex_lock(held);                                         \
    if (!state.initialized) return NOT_INITIALIZED;                   \
    if (failing[0] && !strcmp(failing, __func__)) return failing_code; \
    if ((needs_context) && depth == 0) return INVALID_CONTEXT;

static int inside(char *address, size_t bytes) {
    for (int i = 0; i < MOST; i++)
        if (allocations[i].address && address >= allocations[i].address &&
            address + bytes <= allocations[i].address + allocations[i].bytes)
            return 1;
    return 0;
}

int cuInit(unsigned flags) {
    if (flags) return INVALID_VALUE;
    if (state.init_code) return state.init_code;
    state.initialized = 1;
    return 0;
}
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuGetErrorName(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE"
          : code == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *text ? 0 : INVALID_VALUE;
}
int cuGetErrorString(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "out of memory" : code == NO_DEVICE ? "no CUDA-capable device is detected"
          : code == INVALID_CONTEXT ? "invalid device context"
          : code == 700 ? "an illegal memory access was encountered" : NULL;
    return *text ? 0 : INVALID_VALUE;
}
int cuDeviceGetCount(int *count) { ENTER(0) *count = state.devices; return 0; }
int cuDeviceGet(int *device, int index) {
    ENTER(0)
    if (index >= state.devices) return 101;
    *device = index;
    return 0;
}
int cuDeviceGetName(char *name, int length, int device) {
    ENTER(0) (void)device;
    strncpy(name, "Imaginary Orin", (size_t)length);
    return 0;
}
int cuDeviceGetUuid(unsigned char *uuid, int device) {
    ENTER(0)
    for (int i = 0; i < 16; i++) uuid[i] = (unsigned char)(i + device);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER(0) (void)device;
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { ENTER(0) (void)device; *bytes = state.memory; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    ENTER(0) (void)device;
    state.contexts++;
    *context = &state;
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) { ENTER(0) (void)device; state.contexts--; return 0; }
int cuCtxPushCurrent_v2(void *context) {
    ENTER(0)
    if (context != &state || state.contexts == 0) return INVALID_CONTEXT;
    depth++;
    return 0;
}
int cuCtxPopCurrent_v2(void **context) { ENTER(1) *context = &state; depth--; return 0; }
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    ENTER(1)
    if (!bytes) return INVALID_VALUE;
    if (state.used + bytes > state.memory) return OUT_OF_MEMORY;
    for (int i = 0; i < MOST; i++)
        if (!allocations[i].address) {
            allocations[i] = (Allocation){calloc(1, bytes), bytes};
            state.used += bytes;
            *address = (uint64_t)(uintptr_t)allocations[i].address;
            return 0;
        }
    return OUT_OF_MEMORY;
}
int cuMemFree_v2(uint64_t address) {
    ENTER(1)
    for (int i = 0; i < MOST; i++)
        if (allocations[i].address && allocations[i].address == (char *)(uintptr_t)address) {
            state.used -= allocations[i].bytes;
            free(allocations[i].address);
            allocations[i] = (Allocation){0};
            return 0;
        }
    return INVALID_VALUE;
}
int cuMemcpyHtoDAsync_v2(uint64_t device, const void *host, size_t bytes, void *stream) {
    ENTER(1)
    if (!stream || !inside((char *)(uintptr_t)device, bytes)) return INVALID_VALUE;
    memcpy((void *)(uintptr_t)device, host, bytes);
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *host, uint64_t device, size_t bytes, void *stream) {
    ENTER(1)
    if (!stream || !inside((char *)(uintptr_t)device, bytes)) return INVALID_VALUE;
    int i = 0;
    while (i < MOST && copies[i].stream) i++;
    if (i < MOST) copies[i] = (Copy){stream, host, (char *)(uintptr_t)device, bytes};
    return i < MOST ? 0 : OUT_OF_MEMORY;
}
int cuStreamCreate(void **stream, unsigned flags) {
    ENTER(1)
    if (flags != 1) return INVALID_VALUE;
    *stream = malloc(1);
    state.streams++;
    return 0;
}
int cuStreamSynchronize(void *stream) {
    ENTER(1)
    for (int i = 0; i < MOST; i++)
        if (copies[i].stream == stream) {
            memcpy(copies[i].host, copies[i].device, copies[i].bytes);
            copies[i] = (Copy){0};
        }
    return 0;
}
int cuStreamDestroy_v2(void *stream) { ENTER(1) free(stream); state.streams--; return 0; }
int cuEventCreate(void **event, unsigned flags) {
    ENTER(1) (void)flags;
    *event = calloc(1, sizeof(int));
    state.events++;
    return 0;
}
int cuEventRecord(void *event, void *stream) { ENTER(1) (void)stream; *(int *)event = 1; return 0; }
int cuEventSynchronize(void *event) { ENTER(1) return *(int *)event ? 0 : INVALID_VALUE; }
int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    ENTER(1)
    if (!*(int *)start || !*(int *)end) return INVALID_VALUE;
    *milliseconds = 1.5f;
    return 0;
}
int cuEventDestroy_v2(void *event) { ENTER(1) free(event); state.events--; return 0; }
