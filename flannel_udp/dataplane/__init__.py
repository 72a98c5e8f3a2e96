"""The packet path as the daemon sees it: open flannel0 and the socket, run engines, publish tables, read counters."""
