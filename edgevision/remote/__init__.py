"""Bundles measured on other machines: over the system's own ssh, on emulated ARM cores, on a Dask cluster.

========================= =====================================================================================
module                    what it does
========================= =====================================================================================
`edgevision.remote.device_url`    what ``--device`` takes: ``ssh://pi@raspberry``, ``emulated://cortex-a72``, ``local``
`edgevision.remote.job`           what is copied: bundles, a slice of the data, arguments; each file with its SHA-256
`edgevision.remote.transport`     the seam: a transport starts one Python on a device and hands back its three pipes
`edgevision.remote.device_side`   the text that runs there; standard library alone
`edgevision.remote.conversation`  the desk's end of the pipes
`edgevision.remote.devices`       several devices at once, kept results, one that drops out
`edgevision.remote.fleet`         the same jobs on a Dask cluster
`edgevision.remote.arm`           aarch64 under QEMU: a root, a wheel of this project in it, counted instructions
========================= =====================================================================================

Nothing is installed on a device and nothing keeps running there: the text of `device_side` travels over the
connection, works in one temporary folder, and removes it when it is done or when the desk is gone.
"""
