"""What machine this is: its processor, its readings, its runtimes, and what INT8 can be expected to do on it.

================================================ ====================================================================
module                                           what it does
================================================ ====================================================================
`edgevision.devices.cpu`, `.gpu`, `.environment`  processor, NVIDIA GPUs, what a measurement has to be read beside
`.sensors`, `.energy`, `.conditions`              readings before, during and after a measurement, and flags
`.figures`, `.cores`, `.boards`, `.registry`      the device registry: figures with their sources; this machine's entry
`.jetpack`, `.runtimes`, `.verdicts`, `.doctor`   what is installed, what is wrong with it, whether INT8 should help
`.judge`                                          one bundle on this machine, its prediction proved by measuring
`.layers`, `.roofline`, `.calibration`,           multiplications and bytes per layer; least times on a board; what
`.estimate`                                       engines reach of them; estimates for boards one does not have
================================================ ====================================================================

Up to `.doctor` the standard library alone, so that ``edgevision doctor`` answers even where nothing else is
installed; what reads bundles needs numpy.
"""
