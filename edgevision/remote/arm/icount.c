/* A TCG plugin for QEMU's user mode on aarch64: what a marked stretch of a program executes.
 *
 * The guest marks a stretch by asking for the process group of a process that cannot exist:
 * getpgid(MARK_BEGIN) starts counting from zero, getpgid(MARK_END) stops and writes one line of JSON to the file
 * given as out=FILE. The kernel answers such a call with ESRCH, so a marked program runs anywhere.
 *
 * Counts are added up when a translated block is entered. One thread of the guest is counted exactly; several would
 * race. Encodings are those of the Arm Architecture Reference Manual for A-profile, chapter C4 (A64 encoding index).
 *
 * Declared here instead of included: distributions ship QEMU without its plugin header. Interface version 1.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MARK_BEGIN 0x45560001
#define MARK_END 0x45560002
#define SYSCALL_GETPGID 155

typedef uint64_t plugin_id;
struct block;
struct instruction;

EXPORT int qemu_plugin_version = 1;

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct block *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct block *, void (*)(unsigned, void *), int, void *);
extern void qemu_plugin_register_vcpu_syscall_cb(
    plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                        uint64_t, uint64_t));
extern size_t qemu_plugin_tb_n_insns(const struct block *);
extern struct instruction *qemu_plugin_tb_get_insn(const struct block *, size_t);
extern const void *qemu_plugin_insn_data(const struct instruction *);

typedef struct {
    uint64_t instructions, loads, stores, bytes_loaded, bytes_stored, branches, simd, multiply, dot;
} counts;

static counts total;
static int counting;
static FILE *out;

static unsigned bits(uint32_t word, int high, int low) { return (word >> low) & ((1u << (high - low + 1)) - 1); }

static void load(counts *n, unsigned bytes) { n->loads++; n->bytes_loaded += bytes; }

static void store(counts *n, unsigned bytes) { n->stores++; n->bytes_stored += bytes; }

static void load_or_store(counts *n, int is_load, unsigned bytes)
{
    if (is_load) load(n, bytes);
    else store(n, bytes);
}

/* LD1 to LD4 and ST1 to ST4, whole registers or one element of each */
static void structures(counts *n, uint32_t w)
{
    int is_load = bits(w, 22, 22);
    if (bits(w, 24, 24)) {
        unsigned opcode = bits(w, 15, 13), size = bits(w, 11, 10), scale = opcode >> 1;
        unsigned registers = ((opcode & 1) << 1 | bits(w, 21, 21)) + 1;
        unsigned bytes = scale < 2 ? 1u << scale : scale == 2 ? (size & 1 ? 8 : 4) : 1u << size;
        load_or_store(n, is_load, registers * bytes);
        return;
    }
    static const unsigned char registers[16] = {4, 0, 4, 0, 3, 0, 3, 1, 2, 0, 2};
    load_or_store(n, is_load, registers[bits(w, 15, 12)] * (bits(w, 30, 30) ? 16 : 8));
}

/* LDR, STR and their kin with one register: immediate, unscaled, register offset; and the atomics among them */
static void single_register(counts *n, uint32_t w)
{
    unsigned size = bits(w, 31, 30), opc = bits(w, 23, 22);
    if (bits(w, 26, 26)) {
        load_or_store(n, opc & 1, opc & 2 ? 16 : 1u << size);
        return;
    }
    if (!bits(w, 24, 24) && bits(w, 21, 21) && bits(w, 11, 10) == 0) {
        load(n, 1u << size);
        store(n, 1u << size);
        return;
    }
    if (size == 3 && opc == 2) return; /* PRFM */
    load_or_store(n, opc != 0, 1u << size);
}

static void memory(counts *n, uint32_t w)
{
    unsigned vector = bits(w, 26, 26), opc = bits(w, 31, 30);
    switch (bits(w, 29, 28)) {
    case 0:
        if (vector) structures(n, w);
        else load_or_store(n, bits(w, 22, 22), (1u << opc) << (bits(w, 21, 21) && !bits(w, 23, 23)));
        break;
    case 1:
        if (bits(w, 24, 24)) load_or_store(n, bits(w, 23, 22) != 0, 1u << opc);
        else if (vector || opc != 3) load(n, vector ? 4u << opc : opc == 1 ? 8 : 4);
        break;
    case 2:
        load_or_store(n, bits(w, 22, 22), 2 * (vector ? 4u << opc : opc == 2 ? 8 : 4));
        break;
    default:
        single_register(n, w);
    }
}

static int is_dot(uint32_t w)
{
    unsigned u = bits(w, 29, 29);
    if ((w & 0x9f208400) == 0x0e008400) { /* three same, extra */
        unsigned opcode = bits(w, 14, 11);
        return opcode == 2 || opcode == 4 || (opcode == 3 && !u) || (opcode == 5 && !u) ||
               (u && (opcode == 13 || opcode == 15));
    }
    if ((w & 0x9f000400) == 0x0f000000) { /* by element */
        unsigned opcode = bits(w, 15, 12);
        return opcode == 14 || (opcode == 15 && !u);
    }
    return 0;
}

static int is_multiply(uint32_t w)
{
    unsigned u = bits(w, 29, 29);
    if ((w & 0xff000000) == 0x1f000000) return 1; /* FMADD, FMSUB, FNMADD, FNMSUB */
    if ((w & 0x9f200400) == 0x0e200400) {         /* three same: MLA, MLS, FMLA, FMLS, FMLAL */
        unsigned opcode = bits(w, 15, 11);
        return opcode == 0x12 || opcode == 0x19 || (opcode == 0x1d && !u);
    }
    if ((w & 0x9f60c400) == 0x0e400400) return bits(w, 13, 11) == 1 && !u; /* FMLA, FMLS of half floats */
    if ((w & 0x9f200c00) == 0x0e200000) return bits(w, 15, 12) >= 8 && bits(w, 15, 12) <= 13; /* SMLAL, SMULL … */
    if ((w & 0x9f000400) == 0x0f000000) { /* by element */
        switch (bits(w, 15, 12)) {
        case 0: case 2: case 4: case 6: case 10: return 1;
        case 1: case 3: case 5: case 7: case 11: return !u;
        case 8: case 12: return u;
        }
    }
    return 0;
}

static void classify(counts *n, uint32_t w)
{
    unsigned group = bits(w, 28, 25);
    n->instructions++;
    if ((group & 5) == 4) memory(n, w);
    else if ((group & 14) == 10) n->branches++;
    else if ((group & 7) == 7) {
        n->simd++;
        if (is_dot(w)) n->dot++;
        else if (is_multiply(w)) n->multiply++;
    }
}

static void entered(unsigned vcpu, void *data)
{
    (void)vcpu;
    if (!counting) return;
    const uint64_t *add = data;
    uint64_t *sum = (uint64_t *)&total;
    for (size_t i = 0; i < sizeof(counts) / sizeof(uint64_t); i++) sum[i] += add[i];
}

static void translated(plugin_id id, struct block *block)
{
    (void)id;
    counts *n = calloc(1, sizeof *n);
    if (!n) abort();
    size_t length = qemu_plugin_tb_n_insns(block);
    for (size_t i = 0; i < length; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        classify(n, word);
    }
    qemu_plugin_register_vcpu_tb_exec_cb(block, entered, 0, n);
}

static void called(plugin_id id, unsigned vcpu, int64_t number, uint64_t first, uint64_t a2, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != SYSCALL_GETPGID) return;
    if (first == MARK_BEGIN) {
        memset(&total, 0, sizeof total);
        counting = 1;
    } else if (first == MARK_END && counting) {
        counting = 0;
        fprintf(out,
                "{\"instructions\": %" PRIu64 ", \"loads\": %" PRIu64 ", \"stores\": %" PRIu64
                ", \"bytes_loaded\": %" PRIu64 ", \"bytes_stored\": %" PRIu64 ", \"branches\": %" PRIu64
                ", \"simd\": %" PRIu64 ", \"multiply\": %" PRIu64 ", \"dot\": %" PRIu64 "}\n",
                total.instructions, total.loads, total.stores, total.bytes_loaded, total.bytes_stored, total.branches,
                total.simd, total.multiply, total.dot);
        fflush(out);
    }
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4)) out = fopen(argv[i] + 4, "w");
    if (!out) {
        fprintf(stderr, "icount: out=FILE is missing, or the file cannot be written\n");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
