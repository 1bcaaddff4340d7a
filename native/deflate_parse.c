/* The parser of deflate_parse.h.
 *
 * Codes are looked up in two steps, 11 bits (8 for distances) and then what is left of the code. An entry:
 *
 *     bits 0..4   bits of the code; of a link: bits of the second table
 *     bits 5..7   what it is
 *     bits 8..12  extra bits
 *     bits 16..31 literal, base of a length, base of a distance; of a link: where the second table begins
 */
#include "deflate_parse.h"

#include <string.h>

#include "bytes.h"
#include "scratch.h"

enum {
    LITERAL_ROOT = 11,
    DISTANCE_ROOT = 8,
    PRECODE_ROOT = 7,
    /* A second table for every entry of the first, all as long as the longest code asks for. */
    LITERAL_ENTRIES = (1 << LITERAL_ROOT) * (1 + (1 << (DEFLATE_MAX_BITS - LITERAL_ROOT))),
    DISTANCE_ENTRIES = (1 << DISTANCE_ROOT) * (1 + (1 << (DEFLATE_MAX_BITS - DISTANCE_ROOT))),
    IS_LITERAL = 1 << 5,
    IS_LINK = 1 << 6,
    IS_OTHER = 1 << 7, /* the end of a block; without bits: no code */
    SLACK = 16,        /* bytes that a copy may write behind its end */
};

typedef struct {
    const uint8_t *data;
    size_t size, at; /* `at` runs past the end: what is there reads as zeros */
    uint64_t bits;
    unsigned count;
} bit_reader;

typedef struct {
    uint32_t literals[LITERAL_ENTRIES];
    uint32_t distances[DISTANCE_ENTRIES];
    int is_fixed; /* they are those of a fixed block, of which hostile streams have a million */
} decoder;

static void refill(bit_reader *reader) {
    if (reader->at + 8 <= reader->size) {
        reader->bits |= load_le64(reader->data + reader->at) << reader->count;
        reader->at += (63 - reader->count) >> 3;
        reader->count |= 56;
        return;
    }
    while (reader->count <= 56) {
        uint64_t byte = reader->at < reader->size ? reader->data[reader->at] : 0;
        reader->bits |= byte << reader->count;
        reader->at++;
        reader->count += 8;
    }
}

static uint32_t take(bit_reader *reader, unsigned count) {
    uint32_t value = (uint32_t)(reader->bits & ((UINT64_C(1) << count) - 1));
    reader->bits >>= count;
    reader->count -= count;
    return value;
}

static uint64_t tell(const bit_reader *reader) {
    return (uint64_t)reader->at * 8 - reader->count;
}

static void seek(bit_reader *reader, uint64_t bit) {
    reader->at = (size_t)(bit >> 3);
    reader->bits = 0;
    reader->count = 0;
    refill(reader);
    take(reader, bit & 7);
}

static int is_past_end(const bit_reader *reader) {
    return tell(reader) > (uint64_t)reader->size * 8;
}

static uint32_t reversed(uint32_t code, unsigned bits) {
    uint32_t result = 0;
    for (; bits; bits--, code >>= 1) {
        result = result << 1 | (code & 1);
    }
    return result;
}

/* A table of the codes with these lengths; -1 if no decoder would take them. */
static int build(uint32_t *table, unsigned root, const uint8_t *lengths, const uint32_t *symbols,
                 unsigned count) {
    unsigned counts[DEFLATE_MAX_BITS + 1] = {0}, starts[DEFLATE_MAX_BITS + 2] = {0};
    uint16_t order[DEFLATE_LITERALS + DEFLATE_DISTANCES];
    for (unsigned i = 0; i < count; i++) {
        counts[lengths[i]]++;
    }
    unsigned used = count - counts[0], longest = 0;
    uint32_t left = 1;
    for (unsigned bits = 1; bits <= DEFLATE_MAX_BITS; bits++) {
        left <<= 1;
        if (counts[bits] > left) {
            return -1;
        }
        left -= counts[bits];
        starts[bits + 1] = starts[bits] + counts[bits];
        longest = counts[bits] ? bits : longest;
    }
    if (left) { /* incomplete: allowed without codes, or with one of one bit */
        if (used > 1 || longest > 1) {
            return -1;
        }
        for (size_t i = 0; i < (size_t)1 << root; i++) {
            table[i] = IS_OTHER;
        }
    }
    for (unsigned i = 0; i < count; i++) {
        if (lengths[i]) {
            order[starts[lengths[i]]++] = (uint16_t)i;
        }
    }
    unsigned deep = longest > root ? longest - root : 0;
    uint32_t code = 0, last_root = UINT32_MAX, end = 1u << root, first = 0;
    for (unsigned i = 0, bits = 0; i < used; i++, code++) {
        unsigned length = lengths[order[i]];
        code <<= length - bits;
        bits = length;
        uint32_t at = reversed(code, bits), entry = symbols[order[i]] | bits;
        if (bits <= root) {
            for (; at < 1u << root; at += 1u << bits) {
                table[at] = entry;
            }
            continue;
        }
        if ((at & ((1u << root) - 1)) != last_root) {
            last_root = at & ((1u << root) - 1);
            first = end;
            end += 1u << deep;
            table[last_root] = first << 16 | IS_LINK | deep;
        }
        for (at >>= root; at < 1u << deep; at += 1u << (bits - root)) {
            table[first + at] = entry;
        }
    }
    return 0;
}

static uint32_t lookup(const uint32_t *table, unsigned root, const bit_reader *reader) {
    uint32_t entry = table[reader->bits & ((1u << root) - 1)];
    if (entry & IS_LINK) {
        entry = table[(entry >> 16) + ((reader->bits >> root) & ((1u << (entry & 31)) - 1))];
    }
    return entry;
}

static void list_symbols(uint32_t *literals, uint32_t *distances) {
    for (uint32_t i = 0; i < DEFLATE_LITERALS; i++) {
        uint32_t code = i - DEFLATE_END - 1;
        literals[i] = i < DEFLATE_END ? i << 16 | IS_LITERAL
                      : code < DEFLATE_LENGTH_CODES
                          ? (uint32_t)DEFLATE_LENGTH_BASE[code] << 16 |
                                (uint32_t)DEFLATE_LENGTH_EXTRA[code] << 8
                          : IS_OTHER | (i == DEFLATE_END) << 16;
    }
    for (uint32_t i = 0; i < DEFLATE_DISTANCES; i++) {
        distances[i] = i < DEFLATE_DISTANCE_CODES ? (uint32_t)DEFLATE_DISTANCE_BASE[i] << 16 |
                                                        (uint32_t)DEFLATE_DISTANCE_EXTRA[i] << 8
                                                  : IS_OTHER;
    }
}

int deflate_read_lengths(const uint8_t *data, size_t size, uint64_t *bit, uint8_t *lengths,
                         unsigned *literal_count, unsigned *distance_count) {
    bit_reader reader = {data, size, 0, 0, 0};
    uint32_t table[1 << PRECODE_ROOT], symbols[DEFLATE_PRECODES];
    uint8_t precodes[DEFLATE_PRECODES] = {0};
    for (uint32_t i = 0; i < DEFLATE_PRECODES; i++) {
        symbols[i] = i << 16;
    }
    seek(&reader, *bit);
    *literal_count = take(&reader, 5) + 257;
    *distance_count = take(&reader, 5) + 1;
    unsigned count = take(&reader, 4) + 4, total = *literal_count + *distance_count, at = 0;
    refill(&reader);
    for (unsigned i = 0; i < count; i++) {
        precodes[DEFLATE_PRECODE_ORDER[i]] = (uint8_t)take(&reader, 3);
        refill(&reader);
    }
    if (*literal_count > DEFLATE_LITERALS || *distance_count > DEFLATE_DISTANCES ||
        build(table, PRECODE_ROOT, precodes, symbols, DEFLATE_PRECODES)) {
        return -1;
    }
    while (at < total) {
        refill(&reader);
        uint32_t entry = lookup(table, PRECODE_ROOT, &reader);
        if (entry & IS_OTHER) {
            return -1;
        }
        take(&reader, entry & 31);
        unsigned symbol = entry >> 16, repeat = 1;
        uint8_t value = (uint8_t)symbol;
        if (symbol == 16) {
            if (!at) {
                return -1;
            }
            value = lengths[at - 1];
            repeat = 3 + take(&reader, 2);
        } else if (symbol > 16) {
            value = 0;
            repeat = symbol == 17 ? 3 + take(&reader, 3) : 11 + take(&reader, 7);
        }
        if (repeat > total - at) {
            return -1;
        }
        memset(lengths + at, value, repeat);
        at += repeat;
    }
    *bit = tell(&reader);
    return 0;
}

void deflate_fixed_lengths(uint8_t *lengths) {
    memset(lengths, 8, 144);
    memset(lengths + 144, 9, 112);
    memset(lengths + 256, 7, 24);
    memset(lengths + 280, 8, 8);
    memset(lengths + DEFLATE_LITERALS, 5, DEFLATE_DISTANCES);
}

static int grow(void **items, size_t *room, size_t used, size_t wanted, size_t size) {
    size_t more = (*room * 2 > wanted ? *room * 2 : wanted) * size, bytes;
    void *grown = scratch_grow(*items, used * size, more, &bytes);
    if (!grown) {
        return -1;
    }
    *items = grown;
    *room = bytes / size;
    return 0;
}

/* Room for the longest match, and what its copy writes behind it. */
static enum deflate_parse_status make_room(deflate_segment *segment) {
    if (segment->plain_size - segment->history > PARSE_MAX_PLAIN) {
        return PARSE_BAD;
    }
    if (segment->plain_room - segment->plain_size < DEFLATE_MAX_MATCH + SLACK &&
        grow((void **)&segment->plain, &segment->plain_room, segment->plain_size,
             segment->plain_size + DEFLATE_MAX_MATCH + SLACK, 1)) {
        return PARSE_NO_MEMORY;
    }
    if (segment->token_count == segment->token_room &&
        grow((void **)&segment->tokens, &segment->token_room, segment->token_count, 1 << 16,
             sizeof(deflate_token))) {
        return PARSE_NO_MEMORY;
    }
    return PARSE_OK;
}

/* Most matches are short and far away: those are copied at once, with some bytes behind them that are not theirs. */
static inline void copy_match(uint8_t *to, uint32_t distance, uint32_t length) {
    const uint8_t *from = to - distance;
    if (distance >= 16) {
        memcpy(to, from, 16);
        for (uint32_t i = 16; i < length; i += 16) {
            memcpy(to + i, from + i, 16);
        }
    } else if (distance == 1) {
        memset(to, *from, length);
    } else {
        for (uint32_t i = 0; i < length; i++) {
            to[i] = from[i];
        }
    }
}

/* The tokens of one block as long as it is far from all ends, at which nothing has to be checked then. Stops in front of
 * whatever is not a literal or a sound match. */
static void parse_inside(deflate_segment *segment, bit_reader *reader, const decoder *codes, size_t stop) {
    enum { READ = 16, LITERALS = 3, MARGIN = DEFLATE_MAX_MATCH + SLACK }; /* read: bytes; literals at once, of 15 bits */
    size_t room = segment->plain_room > MARGIN ? segment->plain_room - MARGIN : 0;
    uint8_t *plain = segment->plain + segment->plain_size;
    const uint8_t *first = segment->plain + segment->floor;
    const uint8_t *end = segment->plain + (room < stop ? room : stop);
    deflate_token *token = segment->tokens + segment->token_count;
    const deflate_token *last = segment->tokens + segment->token_room - LITERALS;
    bit_reader in = *reader;
    while (in.at + READ <= in.size && plain < end && token < last) {
        refill(&in);
        uint32_t entry = lookup(codes->literals, LITERAL_ROOT, &in);
        for (int i = 0; i < LITERALS && entry & IS_LITERAL && plain < end; i++) {
            take(&in, entry & 31);
            *plain++ = (uint8_t)(entry >> 16);
            *token++ = entry >> 16;
            entry = lookup(codes->literals, LITERAL_ROOT, &in);
        }
        if (entry & IS_LITERAL) {
            continue;
        }
        if (entry & IS_OTHER || plain >= end) {
            break;
        }
        refill(&in);
        bit_reader before = in;
        take(&in, entry & 31);
        uint32_t length = (entry >> 16) + take(&in, (entry >> 8) & 31);
        entry = lookup(codes->distances, DISTANCE_ROOT, &in);
        take(&in, entry & 31);
        uint32_t distance = (entry >> 16) + take(&in, (entry >> 8) & 31);
        if (entry & IS_OTHER || distance > (size_t)(plain - first)) {
            in = before;
            break;
        }
        copy_match(plain, distance, length);
        plain += length;
        *token++ = deflate_match(length, distance);
    }
    *reader = in;
    segment->plain_size = (size_t)(plain - segment->plain);
    segment->token_count = (size_t)(token - segment->tokens);
}

/* The tokens of one block. When only looking ahead, `stop` says at which size of `plain` that is enough. */
static enum deflate_parse_status parse_tokens(deflate_segment *segment, bit_reader *reader,
                                              const decoder *codes, size_t stop) {
    for (;;) {
        parse_inside(segment, reader, codes, stop);
        if (segment->plain_room - segment->plain_size < DEFLATE_MAX_MATCH + SLACK ||
            segment->token_count == segment->token_room) {
            enum deflate_parse_status status = make_room(segment);
            if (status != PARSE_OK) {
                return status;
            }
        }
        if (reader->at > reader->size + 8) {
            return PARSE_NEED_DATA;
        }
        if (segment->plain_size >= stop) {
            return PARSE_OK;
        }
        refill(reader);
        uint32_t entry = lookup(codes->literals, LITERAL_ROOT, reader);
        take(reader, entry & 31);
        if (entry & IS_LITERAL) {
            segment->plain[segment->plain_size++] = (uint8_t)(entry >> 16);
            segment->tokens[segment->token_count++] = entry >> 16;
            continue;
        }
        if (entry & IS_OTHER) {
            return entry >> 16 ? PARSE_OK : PARSE_BAD;
        }
        uint32_t length = (entry >> 16) + take(reader, (entry >> 8) & 31);
        entry = lookup(codes->distances, DISTANCE_ROOT, reader);
        take(reader, entry & 31);
        uint32_t distance = (entry >> 16) + take(reader, (entry >> 8) & 31);
        if (entry & IS_OTHER || distance > segment->plain_size - segment->floor) {
            return PARSE_BAD;
        }
        copy_match(segment->plain + segment->plain_size, distance, length);
        segment->plain_size += length;
        segment->tokens[segment->token_count++] = deflate_match(length, distance);
    }
}

static enum deflate_parse_status parse_stored(deflate_segment *segment, bit_reader *reader,
                                              deflate_event *event) {
    unsigned padding = (unsigned)(-tell(reader) & 7);
    event->padding = (uint8_t)take(reader, padding);
    refill(reader);
    uint32_t length = take(reader, 16), complement = take(reader, 16);
    if (is_past_end(reader)) {
        return PARSE_NEED_DATA;
    }
    if ((length ^ complement) != 0xffff ||
        segment->plain_size - segment->history > PARSE_MAX_PLAIN) {
        return PARSE_BAD;
    }
    size_t from = (size_t)(tell(reader) >> 3);
    if (length > reader->size - from) {
        return PARSE_NEED_DATA;
    }
    if (segment->plain_room - segment->plain_size < length &&
        grow((void **)&segment->plain, &segment->plain_room, segment->plain_size, segment->plain_size + length,
             1)) {
        return PARSE_NO_MEMORY;
    }
    if (length) {
        memcpy(segment->plain + segment->plain_size, reader->data + from, length);
    }
    segment->plain_size += length;
    seek(reader, (uint64_t)(from + length) * 8);
    return PARSE_OK;
}

static enum deflate_parse_status parse_block(deflate_segment *segment, bit_reader *reader,
                                             decoder *codes, deflate_event *event, size_t stop) {
    uint32_t literals[DEFLATE_LITERALS], distances[DEFLATE_DISTANCES];
    uint8_t lengths[DEFLATE_LITERALS + DEFLATE_DISTANCES];
    unsigned literal_count = DEFLATE_LITERALS, distance_count = DEFLATE_DISTANCES;
    refill(reader);
    event->is_final = (uint8_t)take(reader, 1);
    event->type = (uint8_t)take(reader, 2);
    event->bit = tell(reader);
    if (is_past_end(reader)) {
        return PARSE_NEED_DATA;
    }
    if (event->type == DEFLATE_STORED) {
        return parse_stored(segment, reader, event);
    }
    if (event->type == DEFLATE_FIXED && codes->is_fixed) {
        return parse_tokens(segment, reader, codes, stop);
    }
    if (event->type == DEFLATE_FIXED) {
        deflate_fixed_lengths(lengths);
    } else if (event->type == DEFLATE_DYNAMIC) {
        uint64_t bit = event->bit;
        if (deflate_read_lengths(reader->data, reader->size, &bit, lengths, &literal_count,
                                 &distance_count)) {
            /* The same where the header alone runs past the end. */
            return reader->size - (size_t)(event->bit >> 3) < 512 ? PARSE_NEED_DATA : PARSE_BAD;
        }
        event->bit_size = (uint32_t)(bit - event->bit);
        seek(reader, bit);
    } else {
        return PARSE_BAD;
    }
    codes->is_fixed = event->type == DEFLATE_FIXED;
    list_symbols(literals, distances);
    if (build(codes->literals, LITERAL_ROOT, lengths, literals, literal_count) ||
        build(codes->distances, DISTANCE_ROOT, lengths + literal_count, distances,
              distance_count)) {
        return PARSE_BAD;
    }
    return parse_tokens(segment, reader, codes, stop);
}

/* Bytes of the gzip header that begins at `at`; 0: it does not end in the data; -1: it is none. */
static long header_size(const uint8_t *data, size_t size) {
    static const uint8_t magic[3] = {0x1f, 0x8b, 8};
    enum { HAS_CHECKSUM = 2, HAS_EXTRA = 4, HAS_NAME = 8, HAS_COMMENT = 16, RESERVED = 0xe0 };
    if (memcmp(data, magic, size < 3 ? size : 3) != 0) {
        return -1;
    }
    if (size < 10) {
        return 0;
    }
    size_t at = 10;
    if (data[3] & RESERVED) {
        return -1;
    }
    if (data[3] & HAS_EXTRA) {
        if (size - at < 2) {
            return 0;
        }
        at += 2 + (size_t)(data[at] | data[at + 1] << 8);
    }
    for (unsigned text = HAS_NAME; text <= HAS_COMMENT; text <<= 1) {
        if (data[3] & text) {
            const uint8_t *end = at < size ? memchr(data + at, 0, size - at) : NULL;
            if (!end) {
                return size > PARSE_MAX_HEADER ? -1 : 0;
            }
            at = (size_t)(end - data) + 1;
        }
    }
    at += data[3] & HAS_CHECKSUM ? 2 : 0;
    return at > PARSE_MAX_HEADER ? -1 : at > size ? 0 : (long)at;
}

static enum deflate_parse_status parse_header(deflate_segment *segment, bit_reader *reader,
                                              deflate_event *event) {
    size_t at = (size_t)(tell(reader) >> 3);
    long size = header_size(reader->data + at, reader->size - at);
    if (size <= 0) {
        return size ? PARSE_BAD : PARSE_NEED_DATA;
    }
    event->kind = EVENT_HEADER;
    event->bit = (uint64_t)at * 8;
    event->bit_size = (uint32_t)size * 8;
    seek(reader, event->bit + event->bit_size);
    segment->floor = segment->plain_size;
    return PARSE_OK;
}

static enum deflate_parse_status parse_trailer(bit_reader *reader, deflate_event *event) {
    event->kind = EVENT_TRAILER;
    event->padding = (uint8_t)take(reader, (unsigned)(-tell(reader) & 7));
    event->bit = tell(reader);
    event->bit_size = PARSE_TRAILER * 8;
    seek(reader, event->bit + event->bit_size);
    return is_past_end(reader) ? PARSE_NEED_DATA : PARSE_OK;
}

/* Some of what comes behind the segment, as far as its member goes; its tokens are forgotten. */
static enum deflate_parse_status look_ahead(deflate_segment *segment, bit_reader *reader,
                                            decoder *codes) {
    size_t tokens = segment->token_count, stop = segment->end + segment->ahead;
    enum deflate_parse_status status = PARSE_OK;
    deflate_event event = {0};
    while (status == PARSE_OK && !event.is_final && segment->plain_size < stop) {
        event = (deflate_event){0};
        status = parse_block(segment, reader, codes, &event, stop);
        if (status == PARSE_OK && is_past_end(reader)) {
            status = PARSE_NEED_DATA;
        }
    }
    segment->token_count = tokens;
    if (segment->plain_size > stop) {
        segment->plain_size = stop;
    }
    return status;
}

static enum deflate_parse_status parse(deflate_segment *segment, bit_reader *reader,
                                       decoder *codes) {
    int after_final = 0, at_header = segment->at_header;
    for (;;) {
        size_t done = segment->plain_size - segment->history;
        int at_end = at_header && segment->is_last && tell(reader) == (uint64_t)reader->size * 8;
        if (!after_final &&
            (at_end || done >= segment->wanted || segment->event_count >= PARSE_MAX_EVENTS / 2)) {
            segment->bit = tell(reader);
            segment->end = segment->plain_size;
            segment->at_header = at_header;
            return at_header ? PARSE_OK : look_ahead(segment, reader, codes);
        }
        if (segment->event_count == segment->event_room &&
            grow((void **)&segment->events, &segment->event_room, segment->event_count, 64,
                 sizeof(deflate_event))) {
            return PARSE_NO_MEMORY;
        }
        deflate_event *event = &segment->events[segment->event_count++];
        *event = (deflate_event){.kind = EVENT_BLOCK};
        size_t tokens = segment->token_count, plain = segment->plain_size;
        enum deflate_parse_status status = at_header     ? parse_header(segment, reader, event)
                                           : after_final ? parse_trailer(reader, event)
                                           : parse_block(segment, reader, codes, event, SIZE_MAX);
        if (status != PARSE_OK) {
            return status;
        }
        if (is_past_end(reader)) {
            return PARSE_NEED_DATA;
        }
        event->tokens = (uint32_t)(segment->token_count - tokens);
        event->plain = (uint32_t)(segment->plain_size - plain);
        at_header = after_final;
        segment->members += (size_t)after_final;
        after_final = event->kind == EVENT_BLOCK && event->is_final;
    }
}

enum deflate_parse_status deflate_parse(deflate_segment *segment) {
    bit_reader reader = {segment->data, segment->size, 0, 0, 0};
    size_t room;
    decoder *codes = scratch_take(sizeof *codes, &room);
    if (!codes) {
        return PARSE_NO_MEMORY;
    }
    codes->is_fixed = 0;
    segment->plain_size = segment->history;
    seek(&reader, segment->bit);
    enum deflate_parse_status status = make_room(segment);
    if (status == PARSE_OK) {
        status = parse(segment, &reader, codes);
    }
    scratch_give(codes);
    if (status == PARSE_BAD && is_past_end(&reader)) {
        status = PARSE_NEED_DATA; /* what lies behind the end reads as zeros */
    }
    return status == PARSE_NEED_DATA && segment->is_last ? PARSE_BAD : status;
}

void deflate_segment_free(deflate_segment *segment) {
    scratch_give(segment->plain);
    scratch_give(segment->tokens);
    scratch_give(segment->events);
}
