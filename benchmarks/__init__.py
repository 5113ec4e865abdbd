"""The companion beside other libraries, in time, memory and codes: ``make bench``."""
