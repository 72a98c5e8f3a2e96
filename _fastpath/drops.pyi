from enum import IntEnum

class DropReason(IntEnum):
    KEEP = 0
    TOO_SHORT = 1
    NOT_IPV4 = 2
    BAD_HEADER_LEN = 3
    BAD_TOTAL_LEN = 4
    BAD_HEADER_CHECKSUM = 5
    UNSPLIT = 6
    NOT_UNICAST = 7
    NO_ROUTE = 8
    OWN_SUBNET = 9
    TTL_EXPIRED = 10
    UNKNOWN_PEER = 11
    SPOOFED_SOURCE = 12
    NOT_OUR_SUBNET = 13
    TOO_BIG = 14
    UNREACHABLE = 15
    REFUSED = 16
    NO_MEMORY = 17
    QUEUE_FULL = 18
    DEVICE_DOWN = 19
    SYSTEM_ERROR = 20
    DROP_REASONS = 21

SENTENCES: dict[DropReason, str]
