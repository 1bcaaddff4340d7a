/* The encoder's side of deflate_write.h. */
#include "deflate_write.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"

enum {
    MAX_PRECODE_BITS = 7,
    HEAP_NODES = 2 * DEFLATE_LITERALS,
    TOKEN_BYTES = 6, /* 48 bits: a length, a distance, their extra bits */
    REPEAT = 16,     /* precodes: the length before, 3..6 times; zero 3..10 times; zero 11..138 times */
    ZEROS = 17,
    MANY_ZEROS = 18,
};

/* How often each literal, and each length; each code of a distance: in the second row, those of matches. */
typedef struct {
    uint32_t symbols[2][256], distances[2][DEFLATE_DISTANCES];
} raw_counts;

struct huffman {
    uint32_t literals[DEFLATE_LITERALS], distances[DEFLATE_DISTANCES];
    raw_counts raw[2];
    uint8_t distance_code[512]; /* of distances - 1 below 256, and then of each 128 */
    /* Go: package-merge. Leaves by frequency; level by level the weights, and which of them are leaves. */
    uint64_t leaves[DEFLATE_LITERALS], sorting[DEFLATE_LITERALS];
    uint64_t weights[2][2 * DEFLATE_LITERALS];
    uint8_t is_leaf[DEFLATE_MAX_BITS][2 * DEFLATE_LITERALS];
    /* zlib: a heap of nodes by frequency and depth. */
    uint32_t frequency[HEAP_NODES];
    uint8_t depth[HEAP_NODES], bits[HEAP_NODES];
    uint16_t parent[HEAP_NODES], order[HEAP_NODES], heap[HEAP_NODES + 1];
    unsigned heap_size;
};

huffman *huffman_new(void) {
    huffman *space = malloc(sizeof(huffman));
    for (uint32_t i = 0; space && i < 256; i++) {
        space->distance_code[i] = (uint8_t)deflate_distance_code(i + 1);
        space->distance_code[256 + i] = (uint8_t)deflate_distance_code((i << 7) + 1);
    }
    return space;
}

void huffman_free(huffman *space) {
    free(space);
}

int bit_writer_reserve(bit_writer *writer, size_t bytes) {
    bytes += 16; /* whole words are stored */
    if (writer->room - writer->size >= bytes) {
        return writer->failed ? -1 : 0;
    }
    size_t room = writer->room + writer->room / 2 + bytes;
    uint8_t *grown = realloc(writer->bytes, room);
    if (!grown) {
        writer->failed = 1;
        return -1;
    }
    writer->bytes = grown;
    writer->room = room;
    return 0;
}

/* ---- Go: optimal lengths up to a limit; of equal weights, a package comes before a leaf. ---- */

/* Sort by frequency, byte by byte; equal ones stay in order. */
static void sort_leaves(huffman *space, unsigned count, uint32_t highest) {
    for (unsigned shift = 16; highest; shift += 8, highest >>= 8) {
        uint16_t ends[256] = {0};
        for (unsigned i = 0; i < count; i++) {
            ends[(space->leaves[i] >> shift) & 255]++;
        }
        for (unsigned i = 1; i < 256; i++) {
            ends[i] = (uint16_t)(ends[i] + ends[i - 1]);
        }
        for (unsigned i = count; i--;) {
            space->sorting[--ends[(space->leaves[i] >> shift) & 255]] = space->leaves[i];
        }
        memcpy(space->leaves, space->sorting, count * sizeof *space->leaves);
    }
}

static unsigned sorted_leaves(huffman *space, const uint32_t *frequencies, unsigned count) {
    unsigned used = 0;
    uint32_t highest = 0;
    for (unsigned i = 0; i < count; i++) {
        if (frequencies[i]) {
            space->leaves[used++] = (uint64_t)frequencies[i] << 16 | i;
            highest = frequencies[i] > highest ? frequencies[i] : highest;
        }
    }
    sort_leaves(space, used, highest);
    return used;
}

static void package_merge(huffman *space, const uint32_t *frequencies, unsigned count, unsigned limit,
                          uint8_t *lengths) {
    unsigned used = sorted_leaves(space, frequencies, count), before = 0;
    memset(lengths, 0, count);
    if (used <= 2) {
        for (unsigned i = 0; i < used; i++) {
            lengths[space->leaves[i] & 0xffff] = 1;
        }
        return;
    }
    limit = limit < used - 1 ? limit : used - 1;
    for (unsigned level = 0; level < limit; level++) {
        const uint64_t *last = space->weights[(level + 1) & 1];
        uint64_t *weights = space->weights[level & 1];
        unsigned leaf = 0, package = 0, packages = before / 2, size = 0;
        while (leaf < used || package < packages) {
            uint64_t weight = package < packages ? last[2 * package] + last[2 * package + 1] : UINT64_MAX;
            int is_leaf = leaf < used && space->leaves[leaf] >> 16 < weight;
            space->is_leaf[level][size] = (uint8_t)is_leaf;
            weights[size++] = is_leaf ? space->leaves[leaf] >> 16 : weight;
            leaf += (unsigned)is_leaf;
            package += (unsigned)!is_leaf;
        }
        before = size;
    }
    unsigned take = 2 * used - 2;
    for (unsigned level = limit; level-- && take;) {
        unsigned leaves = 0;
        for (unsigned i = 0; i < take; i++) {
            leaves += space->is_leaf[level][i];
        }
        for (unsigned i = 0; i < leaves; i++) {
            lengths[space->leaves[i] & 0xffff]++;
        }
        take = 2 * (take - leaves);
    }
}

/* ---- zlib: a tree from a heap, the deeper of equal nodes last; what is too long is moved up. ---- */

static int is_smaller(const huffman *space, unsigned a, unsigned b) {
    return space->frequency[a] < space->frequency[b] ||
           (space->frequency[a] == space->frequency[b] && space->depth[a] <= space->depth[b]);
}

static void sift_down(huffman *space, unsigned at) {
    uint16_t node = space->heap[at];
    for (unsigned child = 2 * at; child <= space->heap_size; child = 2 * at) {
        if (child < space->heap_size &&
            is_smaller(space, space->heap[child + 1], space->heap[child])) {
            child++;
        }
        if (is_smaller(space, node, space->heap[child])) {
            break;
        }
        space->heap[at] = space->heap[child];
        at = child;
    }
    space->heap[at] = node;
}

/* Lengths of all nodes, from the root down; returns by how much the code is too long. */
static unsigned tree_lengths(huffman *space, unsigned nodes, unsigned ordered, unsigned count,
                             unsigned limit, unsigned *counts, uint8_t *lengths) {
    unsigned overflow = 0;
    space->bits[nodes - 1] = 0;
    for (unsigned i = ordered; i--;) {
        unsigned node = space->order[i], bits = space->bits[space->parent[node]] + 1u;
        if (bits > limit) {
            bits = limit;
            overflow++;
        }
        space->bits[node] = (uint8_t)bits;
        if (node < count) {
            counts[bits]++;
            lengths[node] = (uint8_t)bits;
        }
    }
    return overflow;
}

/* Returns the highest code in use. */
static unsigned heap_lengths(huffman *space, const uint32_t *frequencies, unsigned count,
                             unsigned limit, uint8_t *lengths) {
    int highest = -1;
    unsigned ordered = 0, nodes = count, counts[DEFLATE_MAX_BITS + 1] = {0};
    space->heap_size = 0;
    memset(space->depth, 0, sizeof space->depth);
    memset(lengths, 0, count);
    for (unsigned i = 0; i < count; i++) {
        space->frequency[i] = frequencies[i];
        if (frequencies[i]) {
            space->heap[++space->heap_size] = (uint16_t)i;
            highest = (int)i;
        }
    }
    while (space->heap_size < 2) {
        int code = highest < 2 ? ++highest : 0;
        space->frequency[code] = 1;
        space->heap[++space->heap_size] = (uint16_t)code;
    }
    for (unsigned at = space->heap_size / 2; at; at--) {
        sift_down(space, at);
    }
    do {
        unsigned a = space->heap[1];
        space->heap[1] = space->heap[space->heap_size--];
        sift_down(space, 1);
        unsigned b = space->heap[1], deeper = space->depth[a] > space->depth[b] ? a : b;
        space->order[ordered++] = (uint16_t)a;
        space->order[ordered++] = (uint16_t)b;
        space->frequency[nodes] = space->frequency[a] + space->frequency[b];
        space->depth[nodes] = (uint8_t)(space->depth[deeper] + 1);
        space->parent[a] = space->parent[b] = (uint16_t)nodes;
        space->heap[1] = (uint16_t)nodes++;
        sift_down(space, 1);
    } while (space->heap_size >= 2);
    int overflow = (int)tree_lengths(space, nodes, ordered, count, limit, counts, lengths);
    if (overflow) {
        for (; overflow > 0; overflow -= 2) {
            unsigned bits = limit - 1;
            while (bits && !counts[bits]) {
                bits--;
            }
            counts[bits]--;
            counts[bits + 1] += 2;
            counts[limit]--;
        }
        unsigned next = 0;
        for (unsigned bits = limit; bits; bits--) {
            for (unsigned left = counts[bits]; left && next < ordered; next++) {
                if (space->order[next] < count) {
                    lengths[space->order[next]] = (uint8_t)bits;
                    left--;
                }
            }
        }
    }
    return (unsigned)highest;
}

/* Without a branch on what a token is, which no processor foresees: literals and lengths in one table, distances in another,
 * where those of literals are a row that nobody reads. Tokens take turns in two pairs of them, so that an increment
 * does not wait for the one before. Returns whether there are matches. */
static int count_codes(huffman *space, const deflate_token *tokens, size_t count) {
    memset(space->raw, 0, sizeof space->raw);
    for (size_t i = 0; i < count; i++) {
        deflate_token token = tokens[i];
        unsigned is_match = token >> 31, value = token & (DEFLATE_WINDOW - 1);
        unsigned near = space->distance_code[value & 255], far = space->distance_code[256 + (value >> 7)];
        raw_counts *counts = &space->raw[i & 1];
        counts->symbols[is_match][(is_match ? token >> 16 : token) & 255]++;
        counts->distances[is_match][value < 256 ? near : far]++;
    }
    const raw_counts *a = &space->raw[0], *b = &space->raw[1];
    memset(space->literals, 0, sizeof space->literals);
    memset(space->distances, 0, sizeof space->distances);
    uint32_t matches = 0;
    for (unsigned i = 0; i < 256; i++) {
        uint32_t lengths = a->symbols[1][i] + b->symbols[1][i];
        space->literals[i] = a->symbols[0][i] + b->symbols[0][i];
        space->literals[DEFLATE_END + 1 + deflate_length_code(i + DEFLATE_MIN_MATCH)] += lengths;
        matches += lengths;
    }
    for (unsigned i = 0; i < DEFLATE_DISTANCES; i++) {
        space->distances[i] = a->distances[1][i] + b->distances[1][i];
    }
    space->literals[DEFLATE_END]++;
    return matches != 0;
}

void huffman_lengths(huffman *space, enum huffman_style style, const deflate_token *tokens,
                     size_t count, code_lengths *lengths) {
    enum { USED = DEFLATE_END + 1 + DEFLATE_LENGTH_CODES };
    int has_match = count_codes(space, tokens, count);
    if (style == HUFFMAN_ZLIB) {
        lengths->literals =
            1 + heap_lengths(space, space->literals, USED, DEFLATE_MAX_BITS, lengths->literal);
        lengths->distances = 1 + heap_lengths(space, space->distances, DEFLATE_DISTANCE_CODES,
                                              DEFLATE_MAX_BITS, lengths->distance);
        return;
    }
    if (!has_match) {
        space->distances[0] = 1; /* Go writes one distance code even where none is used */
    }
    lengths->literals = USED;
    while (lengths->literals > DEFLATE_END + 1 && !space->literals[lengths->literals - 1]) {
        lengths->literals--;
    }
    lengths->distances = DEFLATE_DISTANCE_CODES;
    while (!space->distances[lengths->distances - 1]) {
        lengths->distances--;
    }
    package_merge(space, space->literals, lengths->literals, DEFLATE_MAX_BITS, lengths->literal);
    package_merge(space, space->distances, lengths->distances, DEFLATE_MAX_BITS, lengths->distance);
}

/* ---- Headers ---- */

/* Lengths as precodes, each followed by its repetitions where it has some. */
typedef struct {
    uint8_t codes[2 * (DEFLATE_LITERALS + DEFLATE_DISTANCES)];
    unsigned size;
    uint32_t frequencies[DEFLATE_PRECODES];
} precode_run;

static void add_precode(precode_run *run, unsigned code) {
    run->codes[run->size++] = (uint8_t)code;
    run->frequencies[code]++;
}

static void add_repeat(precode_run *run, unsigned code, unsigned extra) {
    add_precode(run, code);
    run->codes[run->size++] = (uint8_t)extra;
}

/* Go: runs go across the border of literals and distances, and are cut into the longest repetitions. */
static void scan_go(precode_run *run, const uint8_t *lengths, unsigned count) {
    for (unsigned i = 0, end; i < count; i = end) {
        for (end = i; end < count && lengths[end] == lengths[i]; end++) {
        }
        unsigned left = end - i, value = lengths[i];
        if (value) {
            add_precode(run, value);
            left--;
        }
        while (!value && left >= 11) {
            unsigned part = left < 138 ? left : 138;
            add_repeat(run, MANY_ZEROS, part - 11);
            left -= part;
        }
        if (!value && left >= 3) {
            add_repeat(run, ZEROS, left - 3);
            left = 0;
        }
        while (value && left >= 3) {
            unsigned part = left < 6 ? left : 6;
            add_repeat(run, REPEAT, part - 3);
            left -= part;
        }
        for (; left; left--) {
            add_precode(run, value);
        }
    }
}

/* zlib: runs end with each kind of code; one of a new value is at most 7 long, the first included. */
static void scan_zlib(precode_run *run, const uint8_t *lengths, unsigned count) {
    int previous = -1;
    unsigned most = lengths[0] ? 7 : 138, least = lengths[0] ? 4 : 3, repeat = 0;
    for (unsigned i = 0; i < count; i++) {
        unsigned value = lengths[i], next = i + 1 < count ? lengths[i + 1] : 255;
        if (++repeat < most && value == next) {
            continue;
        }
        if (repeat < least) {
            for (; repeat; repeat--) {
                add_precode(run, value);
            }
        } else if (value) {
            if ((int)value != previous) {
                add_precode(run, value);
                repeat--;
            }
            add_repeat(run, REPEAT, repeat - 3);
        } else if (repeat <= 10) {
            add_repeat(run, ZEROS, repeat - 3);
        } else {
            add_repeat(run, MANY_ZEROS, repeat - 11);
        }
        repeat = 0;
        previous = (int)value;
        most = !next ? 138 : value == next ? 6 : 7;
        least = !next || value == next ? 3 : 4;
    }
}

static uint32_t reversed(uint32_t code, unsigned bits) {
    uint32_t result = 0;
    for (; bits; bits--, code >>= 1) {
        result = result << 1 | (code & 1);
    }
    return result;
}

/* The codes that belong to lengths (RFC 1951, 3.2.2); what no decoder takes gives codes without meaning. */
static void assign_codes(const uint8_t *lengths, unsigned count, uint16_t *codes) {
    uint32_t next[DEFLATE_MAX_BITS + 2] = {0}, counts[DEFLATE_MAX_BITS + 1] = {0};
    for (unsigned i = 0; i < count; i++) {
        counts[lengths[i]]++;
    }
    counts[0] = 0;
    for (unsigned bits = 1; bits <= DEFLATE_MAX_BITS; bits++) {
        next[bits + 1] = (next[bits] + counts[bits]) << 1;
    }
    for (unsigned i = 0; i < count; i++) {
        codes[i] = lengths[i] ? (uint16_t)reversed(next[lengths[i]]++, lengths[i]) : 0;
    }
}

void deflate_write_header(bit_writer *writer, huffman *space, enum huffman_style style,
                          const code_lengths *lengths) {
    static const uint8_t extra_bits[3] = {2, 3, 7};
    precode_run run = {.size = 0};
    uint8_t precodes[DEFLATE_PRECODES];
    uint16_t codes[DEFLATE_PRECODES];
    if (style == HUFFMAN_GO) {
        uint8_t all[DEFLATE_LITERALS + DEFLATE_DISTANCES];
        memcpy(all, lengths->literal, lengths->literals);
        memcpy(all + lengths->literals, lengths->distance, lengths->distances);
        scan_go(&run, all, lengths->literals + lengths->distances);
        package_merge(space, run.frequencies, DEFLATE_PRECODES, MAX_PRECODE_BITS, precodes);
    } else {
        scan_zlib(&run, lengths->literal, lengths->literals);
        scan_zlib(&run, lengths->distance, lengths->distances);
        heap_lengths(space, run.frequencies, DEFLATE_PRECODES, MAX_PRECODE_BITS, precodes);
    }
    assign_codes(precodes, DEFLATE_PRECODES, codes);
    unsigned count = DEFLATE_PRECODES;
    while (count > 4 && !precodes[DEFLATE_PRECODE_ORDER[count - 1]]) {
        count--;
    }
    bit_writer_put(writer, lengths->literals - 257, 5);
    bit_writer_put(writer, lengths->distances - 1, 5);
    bit_writer_put(writer, count - 4, 4);
    for (unsigned i = 0; i < count; i++) {
        bit_writer_put(writer, precodes[DEFLATE_PRECODE_ORDER[i]], 3);
    }
    for (unsigned i = 0; i < run.size; i++) {
        unsigned code = run.codes[i];
        bit_writer_put(writer, codes[code], precodes[code]);
        if (code >= REPEAT) {
            bit_writer_put(writer, run.codes[++i], extra_bits[code - REPEAT]);
        }
    }
}

/* ---- Tokens ---- */

/* Codes of all lengths, with their extra bits: bits in the low 24, their number above. */
static void length_words(const code_lengths *lengths, const uint16_t *codes, uint32_t *words) {
    for (unsigned length = DEFLATE_MIN_MATCH; length <= DEFLATE_MAX_MATCH; length++) {
        unsigned code = deflate_length_code(length), symbol = DEFLATE_END + 1 + code;
        unsigned bits = symbol < lengths->literals ? lengths->literal[symbol] : 0;
        uint32_t extra = length - DEFLATE_LENGTH_BASE[code];
        words[length - DEFLATE_MIN_MATCH] =
            (codes[symbol] | extra << bits) | (bits + DEFLATE_LENGTH_EXTRA[code]) << 24;
    }
}

void deflate_write_tokens(bit_writer *writer, const deflate_token *tokens, size_t count,
                          const code_lengths *lengths) {
    uint16_t codes[DEFLATE_LITERALS] = {0}, distance_codes[DEFLATE_DISTANCES] = {0};
    uint32_t words[256], literals[256];
    uint8_t distance_bits[DEFLATE_DISTANCES] = {0};
    assign_codes(lengths->literal, lengths->literals, codes);
    assign_codes(lengths->distance, lengths->distances, distance_codes);
    memcpy(distance_bits, lengths->distance, lengths->distances);
    length_words(lengths, codes, words);
    for (unsigned i = 0; i < 256; i++) {
        literals[i] = codes[i] | (uint32_t)lengths->literal[i] << 24;
    }
    if (bit_writer_reserve(writer, (count + 1) * TOKEN_BYTES)) {
        return;
    }
    uint64_t bits = writer->bits;
    unsigned held = writer->count;
    uint8_t *to = writer->bytes + writer->size;
    for (size_t i = 0; i < count; i++) {
        deflate_token token = tokens[i];
        if (token & DEFLATE_MATCH) {
            uint32_t word = words[(token >> 16) & 255], distance = deflate_match_distance(token);
            unsigned code = deflate_distance_code(distance);
            bits |= (uint64_t)(word & 0xffffff) << held;
            held += word >> 24;
            uint64_t tail = distance_codes[code] |
                            (uint64_t)(distance - DEFLATE_DISTANCE_BASE[code]) << distance_bits[code];
            bits |= tail << held;
            held += distance_bits[code] + DEFLATE_DISTANCE_EXTRA[code];
        } else {
            uint32_t word = literals[token & 255];
            bits |= (uint64_t)(word & 0xffffff) << held;
            held += word >> 24;
        }
        store_le64(to, bits);
        to += held >> 3;
        bits >>= held & 56;
        held &= 7;
    }
    writer->bits = bits;
    writer->count = held;
    writer->size = (size_t)(to - writer->bytes);
    bit_writer_put(writer, codes[DEFLATE_END], lengths->literal[DEFLATE_END]);
}
