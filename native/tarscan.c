#include "tarscan.h"

#include <string.h>

#include "bytes.h"

enum { BLOCK = 512, UNPARSED = 1 };
enum { FORMAT_V7, FORMAT_USTAR, FORMAT_GNU };
enum { NAME = 0, MODE = 100, UID = 108, GID = 116, SIZE = 124, MTIME = 136, CHECKSUM = 148 };
enum { TYPEFLAG = 156, LINK = 157, MAGIC = 257, DEVMAJOR = 329, DEVMINOR = 337, PREFIX = 345 };

static const uint64_t MAX_SIZE = (uint64_t)1 << 62;

/* A number as written: its value is -magnitude - 1 if negative (one's complement), else magnitude. */
typedef struct {
    uint64_t magnitude;
    int is_negative;
    int is_good;
} number;

static int scan_header(const uint8_t *data, size_t size, uint64_t *next, uint8_t *row);
static void write_row(const uint8_t *header, uint64_t at, uint64_t size, uint8_t *row);
static int checksum_matches(const uint8_t *header);
static int is_special_body(const uint8_t *body, size_t size);
static number read_number(const uint8_t *field, size_t width);
static uint64_t unsigned_field(const uint8_t *field, size_t width, uint64_t most, uint32_t *flags);
static uint64_t signed_field(const uint8_t *field, size_t width, uint32_t *flags);
static uint16_t text_length(const uint8_t *field, size_t width);
static int is_zero_block(const uint8_t *header);

enum { FOUND = -1 };

enum tarscan_stop tarscan(const uint8_t *data, size_t size, uint64_t *next, uint8_t *rows, size_t room,
                          size_t *count) {
    for (*count = 0;; ++*count) {
        if (size < BLOCK || *next > size - BLOCK) {
            return TARSCAN_NEED_DATA;
        }
        if (*count == room) {
            return TARSCAN_MORE;
        }
        int stop = scan_header(data, size, next, rows + *count * TARSCAN_ROW);
        if (stop != FOUND) {
            return (enum tarscan_stop)stop;
        }
    }
}

/* Writes the row and moves *next on, or leaves both and returns why. The block at *next is in data. */
static int scan_header(const uint8_t *data, size_t size, uint64_t *next, uint8_t *row) {
    const uint8_t *header = data + *next;
    if (is_zero_block(header)) {
        return TARSCAN_END;
    }
    if (!checksum_matches(header)) {
        return TARSCAN_BAD_CHECKSUM;
    }
    number length = read_number(header + SIZE, 12);
    if (!length.is_good || length.is_negative || length.magnitude > MAX_SIZE) {
        return TARSCAN_BAD_SIZE;
    }
    uint64_t body = length.magnitude;
    uint8_t kind = header[TYPEFLAG];
    int is_extension = kind == 'x' || kind == 'L' || kind == 'K';
    if (kind >= '1' && kind <= '6') {
        body = 0; /* header only, whatever the field says: Go's archive/tar */
    } else if (!(kind == '\0' || kind == '0' || kind == '7' || is_extension)) {
        return TARSCAN_SPECIAL;
    }
    /* No overflow: both are at most 2**62. */
    uint64_t after = *next + BLOCK + (body + BLOCK - 1) / BLOCK * BLOCK;
    if (is_extension && after > size) {
        return TARSCAN_NEED_DATA;
    }
    if (kind == 'x' && is_special_body(header + BLOCK, (size_t)body)) {
        return TARSCAN_SPECIAL;
    }
    write_row(header, *next, body, row);
    *next = after;
    return FOUND;
}

static void write_row(const uint8_t *header, uint64_t at, uint64_t size, uint8_t *row) {
    uint8_t format = FORMAT_V7;
    if (memcmp(header + MAGIC, "ustar\0", 6) == 0) {
        format = FORMAT_USTAR;
    } else if (memcmp(header + MAGIC, "ustar  \0", 8) == 0) {
        format = FORMAT_GNU;
    }
    uint32_t flags = 0;
    store_le64(row, at);
    store_le64(row + 8, size);
    store_le64(row + 16, signed_field(header + MTIME, 12, &flags));
    store_le64(row + 24, unsigned_field(header + UID, 8, UINT64_MAX, &flags));
    store_le64(row + 32, unsigned_field(header + GID, 8, UINT64_MAX, &flags));
    store_le32(row + 40, (uint32_t)unsigned_field(header + MODE, 8, UINT32_MAX, &flags));
    /* A v7 header ends before the device fields; what stands there means nothing. */
    uint64_t major = 0, minor = 0;
    if (format != FORMAT_V7) {
        major = unsigned_field(header + DEVMAJOR, 8, UINT32_MAX, &flags);
        minor = unsigned_field(header + DEVMINOR, 8, UINT32_MAX, &flags);
    }
    store_le32(row + 44, (uint32_t)major);
    store_le32(row + 48, (uint32_t)minor);
    store_le16(row + 52, text_length(header + NAME, 100));
    store_le16(row + 54, format == FORMAT_USTAR ? text_length(header + PREFIX, 155) : 0);
    store_le16(row + 56, text_length(header + LINK, 100));
    row[58] = header[TYPEFLAG];
    row[59] = format;
    store_le32(row + 60, flags);
}

/* The sum of the block with the checksum field as spaces; some old writers summed signed bytes. */
static int checksum_matches(const uint8_t *header) {
    if (header[CHECKSUM] & 0x80) {
        return 0; /* base-256 is not for checksums */
    }
    number want = read_number(header + CHECKSUM, 8);
    if (!want.is_good) {
        return 0;
    }
    uint32_t sum = 0, high = 0;
    for (int i = 0; i < BLOCK; i++) {
        sum += header[i];
    }
    for (int i = CHECKSUM; i < CHECKSUM + 8; i++) {
        sum += ' ' - (uint32_t)header[i];
    }
    if (want.magnitude == sum) {
        return 1;
    }
    for (int i = 0; i < BLOCK; i++) {
        high += header[i] >> 7;
    }
    for (int i = CHECKSUM; i < CHECKSUM + 8; i++) {
        high -= header[i] >> 7;
    }
    /* A byte with its high bit set is 256 less when signed. */
    return (int64_t)want.magnitude == (int64_t)sum - 256 * (int64_t)high;
}

/* Records that change how the next header or its payload is to be read. */
static int is_special_body(const uint8_t *body, size_t size) {
    static const char *const keys[] = {"size=", "GNU.sparse", "hdrcharset"};
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        size_t length = strlen(keys[k]);
        const uint8_t *at = body, *end = body + size;
        while ((size_t)(end - at) >= length) {
            at = memchr(at, keys[k][0], (size_t)(end - at) - length + 1);
            if (!at) {
                break;
            }
            if (memcmp(at, keys[k], length) == 0) {
                return 1;
            }
            at++;
        }
    }
    return 0;
}

static uint64_t unsigned_field(const uint8_t *field, size_t width, uint64_t most, uint32_t *flags) {
    number found = read_number(field, width);
    if (!found.is_good || found.is_negative || found.magnitude > most) {
        *flags |= UNPARSED;
        return 0;
    }
    return found.magnitude;
}

/* As the bits of an i64. */
static uint64_t signed_field(const uint8_t *field, size_t width, uint32_t *flags) {
    number found = read_number(field, width);
    if (!found.is_good || found.magnitude > INT64_MAX) {
        *flags |= UNPARSED;
        return 0;
    }
    return found.is_negative ? ~found.magnitude : found.magnitude;
}

/* Octal, or base-256 if bit 7 of the first byte is set: two's complement without that bit. */
static number read_number(const uint8_t *field, size_t width) {
    number found = {0, 0, 1};
    size_t i = 0;
    if (field[0] & 0x80) {
        found.is_negative = field[0] >> 6 & 1;
        uint8_t invert = found.is_negative ? 0xFF : 0;
        for (; i < width; i++) {
            uint8_t octet = field[i] ^ invert;
            if (i == 0) {
                octet &= 0x7F;
            }
            if (found.magnitude >> 56) {
                found.is_good = 0;
            }
            found.magnitude = found.magnitude << 8 | octet;
        }
        return found;
    }
    while (i < width && field[i] == ' ') {
        i++;
    }
    for (; i < width && field[i] != ' ' && field[i] != '\0'; i++) {
        if (field[i] < '0' || field[i] > '7') {
            found.is_good = 0;
            break;
        }
        found.magnitude = found.magnitude << 3 | (uint64_t)(field[i] - '0');
    }
    return found;
}

static uint16_t text_length(const uint8_t *field, size_t width) {
    const uint8_t *end = memchr(field, '\0', width);
    return (uint16_t)(end ? (size_t)(end - field) : width);
}

static int is_zero_block(const uint8_t *header) {
    return header[0] == 0 && memcmp(header, header + 1, BLOCK - 1) == 0;
}
