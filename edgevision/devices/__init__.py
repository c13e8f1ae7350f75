"""What machine this is: its processor, its readings, its runtimes, and what INT8 can be expected to do on it.

Standard library only, so that ``edgevision doctor`` answers even where nothing else is installed. Import the
functions from their modules: `edgevision.devices.cpu.cpu_info`, `edgevision.devices.environment.environment`,
`edgevision.devices.doctor.doctor`.
"""
