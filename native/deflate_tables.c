/* Hash tables: deflate_tables.h.
 *
 * A table holds positions; NOWHERE is so far from all of them that no distance to it is in reach. What a block's encoder
 * writes is kept as tokens in order, with a cursor: at a position that is not the start of one of them (because the
 * real encoder differed before) a literal is predicted.
 */
#include "deflate_tables.h"

#include <stdlib.h>

#include "bytes.h"

enum {
    BLOCK = 65535,
    KLAUSPOST_DICTIONARY = 16384, /* of pgzip */
    TABLE_BITS = 15,
    GO_TABLE_BITS = 14,
    KLAUSPOST_MARGIN = 11, /* bytes at the end of a block that are not searched */
    GO_MARGIN = 15,
    NOWHERE = -100000,
};

typedef struct {
    int32_t newest, older;
} bucket;

struct table_model {
    const uint8_t *data;
    int64_t origin; /* where the member begins, maybe before the data */
    uint32_t end;   /* of the member */
    uint32_t block; /* bytes that are compressed by themselves */
    uint8_t family, level;
    /* the block in hand */
    int32_t floor, from, to;
    deflate_token *tokens;
    uint32_t count, cursor, cursor_at;
    int32_t *table;   /* by a hash of 4 bytes, or of 5 at level 1 */
    uint32_t *values; /* of Go: the 4 bytes at that position */
    bucket *buckets;  /* by a hash of 7 bytes, of levels 5 and 6 */
};

static uint32_t word_at(const uint8_t *data, int32_t at) {
    return load_le32(data + at);
}

static uint64_t long_at(const uint8_t *data, int32_t at) {
    return load_le64(data + at);
}

static uint32_t hash_4(uint64_t bytes) {
    return ((uint32_t)bytes * 2654435761u) >> (32 - TABLE_BITS);
}

static uint32_t hash_5(uint64_t bytes) {
    return (uint32_t)(((bytes << 24) * UINT64_C(889523592379)) >> (64 - TABLE_BITS));
}

static uint32_t hash_7(uint64_t bytes) {
    return (uint32_t)(((bytes << 8) * UINT64_C(58295818150454627)) >> (64 - TABLE_BITS));
}

static uint32_t hash_go(uint32_t bytes) {
    return (bytes * 0x1e35a7bdu) >> (32 - GO_TABLE_BITS);
}

static void push(table_model *model, uint64_t bytes, int32_t at) {
    bucket *bucket = &model->buckets[hash_7(bytes)];
    bucket->older = bucket->newest;
    bucket->newest = at;
}

static void push_both(table_model *model, uint64_t bytes, int32_t at) {
    model->table[hash_4(bytes)] = at;
    push(model, bytes, at);
}

static void put_literals(table_model *model, int32_t from, int32_t to) {
    for (; from < to; from++) {
        model->tokens[model->count++] = model->data[from];
    }
}

/* A match however long, cut so that no part is shorter than a match may be. */
static void put_match(table_model *model, int32_t length, int32_t distance) {
    while (length > 0) {
        int32_t part = length <= DEFLATE_MAX_MATCH         ? length
                       : length > DEFLATE_MAX_MATCH + 3 ? DEFLATE_MAX_MATCH
                                                        : DEFLATE_MAX_MATCH - 3;
        model->tokens[model->count++] = deflate_match((uint32_t)part, (uint32_t)distance);
        length -= part;
    }
}

/* Length of the match of `at` with `there`, whose first 4 bytes are equal; at most one token long. */
static int32_t match_length(const table_model *model, int32_t there, int32_t at) {
    int32_t limit = model->to - at < DEFLATE_MAX_MATCH ? model->to - at : DEFLATE_MAX_MATCH;
    return 4 + (int32_t)deflate_common(model->data + there + 4, model->data + at + 4,
                                       (uint32_t)(limit - 4));
}

/* The same however long. */
static int32_t whole_length(const table_model *model, int32_t there, int32_t at) {
    return (int32_t)deflate_common(model->data + there, model->data + at,
                                   (uint32_t)(model->to - at));
}

typedef struct {
    int32_t at, there, length; /* length 0: at least 4, not counted yet */
} match;

/* Bytes before both ends that are equal too belong to the match, as far as nothing is written for them yet. */
static void extend_back(const table_model *model, int32_t emitted, match *found) {
    while (found->there > model->floor && found->at > emitted &&
           model->data[found->there - 1] == model->data[found->at - 1]) {
        found->at--;
        found->there--;
        found->length++;
    }
}

static void consider(const table_model *model, int32_t there, int32_t at, match *best) {
    int32_t length = match_length(model, there, at);
    if (length > best->length) {
        *best = (match){at, there, length};
    }
}

/* The next match at or behind `*next`, which moves to where the search goes on; 0: none before the block's end. */
static int search_klauspost(table_model *model, int32_t *next, uint64_t *current, int32_t emitted,
                            int32_t repeat, match *found) {
    const uint8_t *data = model->data;
    int32_t limit = model->to - KLAUSPOST_MARGIN, is_six = model->level == 6;
    unsigned skip = is_six ? 7 : 6;
    uint64_t bytes = *current;
    int32_t ahead = *next;
    for (;;) {
        int32_t at = ahead;
        ahead = at + 1 + ((at - emitted) >> skip);
        if (ahead > limit) {
            return 0;
        }
        uint32_t short_hash = hash_4(bytes), long_hash = hash_7(bytes);
        int32_t candidate = model->table[short_hash];
        bucket *bucket = &model->buckets[long_hash];
        int32_t newest = bucket->newest, older = bucket->older;
        uint64_t following = long_at(data, ahead);
        model->table[short_hash] = at;
        bucket->older = newest;
        bucket->newest = at;
        *next = ahead;
        if (at - newest < DEFLATE_WINDOW) {
            if (word_at(data, newest) == (uint32_t)bytes) {
                push_both(model, following, ahead);
                *found = (match){at, newest, 0};
                if (at - older < DEFLATE_WINDOW && word_at(data, older) == (uint32_t)bytes) {
                    found->length = match_length(model, newest, at);
                    consider(model, older, at, found);
                }
                return 1;
            }
            if (at - older < DEFLATE_WINDOW && word_at(data, older) == (uint32_t)bytes) {
                push_both(model, following, ahead);
                *found = (match){at, older, 0};
                return 1;
            }
        }
        if (at - candidate < DEFLATE_WINDOW && word_at(data, candidate) == (uint32_t)bytes) {
            *found = (match){at, candidate, match_length(model, candidate, at)};
            uint32_t hash = hash_7(following);
            newest = model->buckets[hash].newest;
            older = model->buckets[hash].older;
            push_both(model, following, ahead);
            if (is_six) {
                int32_t again = at - repeat + 1;
                if (word_at(data, again) == (uint32_t)(bytes >> 8)) {
                    int32_t before = found->length;
                    consider(model, again, at + 1, found);
                    if (found->length > before) {
                        return 1;
                    }
                }
            }
            int32_t before = found->length;
            if (ahead - newest < DEFLATE_WINDOW) {
                if (word_at(data, newest) == (uint32_t)following) {
                    consider(model, newest, ahead, found);
                    if (!is_six && found->length > before) {
                        return 1;
                    }
                }
                if (ahead - older < DEFLATE_WINDOW && word_at(data, older) == (uint32_t)following) {
                    consider(model, older, ahead, found);
                }
            }
            return 1;
        }
        bytes = following;
    }
}

/* A longer match may be found from the end of this one: what follows it there may have preceded the same bytes. */
static void probe_end(const table_model *model, match *found) {
    int32_t end = found->at + found->length, limit = model->to - KLAUSPOST_MARGIN;
    if (end >= limit || model->level == 25 || (model->level != 6 && found->length >= 30)) {
        return;
    }
    const bucket *bucket = &model->buckets[hash_7(long_at(model->data, end))];
    int32_t skip = model->level == 15 ? 0 : 2, at = found->at + skip;
    const int32_t ends[2] = {bucket->newest, bucket->older};
    for (int i = 0; i < (model->level == 6 ? 2 : 1); i++) {
        int32_t there = ends[i] - found->length + skip, distance = at - there;
        if (distance >= DEFLATE_WINDOW) {
            return; /* the older one is farther away */
        }
        if (distance > 0 && there >= model->floor) {
            int32_t length = whole_length(model, there, at);
            if (length > found->length) {
                *found = (match){at, there, length};
            }
        }
    }
}

/* What levels 5 and 6 remember of the inside of a match that ends at `end`; `next` is where the search was. */
static void remember_five(table_model *model, const match *found, int32_t end) {
    int32_t at = end - found->length + 1;
    if (at < end - 1) {
        uint64_t bytes = long_at(model->data, at);
        push_both(model, bytes, at);
        push(model, bytes >> 8, at + 1);
        model->table[hash_4(bytes >> 16)] = at + 2;
        for (at += 4; at < end - 1; at += 3) {
            bytes = long_at(model->data, at);
            push(model, bytes, at);
            model->table[hash_4(bytes >> 8)] = at + 1;
        }
    }
}

static void remember_six(table_model *model, int32_t next, int32_t end) {
    for (int32_t at = next + 1; at < end - 1; at += 2) {
        uint64_t bytes = long_at(model->data, at);
        push_both(model, bytes, at);
        push(model, bytes >> 8, at + 1);
    }
}

static int encode_klauspost(table_model *model) {
    const uint8_t *data = model->data;
    int32_t at = model->from, emitted = at, limit = model->to - KLAUSPOST_MARGIN, repeat = 1;
    if (model->to - at < KLAUSPOST_MARGIN + 2) {
        return -1;
    }
    uint64_t bytes = long_at(data, at);
    int32_t next = at;
    match found;
    while (search_klauspost(model, &next, &bytes, emitted, repeat, &found)) {
        if (!found.length) {
            found.length = whole_length(model, found.there, found.at);
        } else if (found.length == DEFLATE_MAX_MATCH) {
            found.length += whole_length(model, found.there + found.length, found.at + found.length);
        }
        probe_end(model, &found);
        extend_back(model, emitted, &found);
        put_literals(model, emitted, found.at);
        put_match(model, found.length, found.at - found.there);
        repeat = found.at - found.there;
        emitted = found.at + found.length;
        at = next >= emitted ? next + 1 : emitted;
        if (at >= limit) {
            for (int32_t i = next + 1; model->level == 6 && i < model->to - 8; i += 2) {
                push_both(model, long_at(data, i), i);
            }
            break;
        }
        if (model->level == 6) {
            remember_six(model, next, at);
            bytes = long_at(data, at);
        } else {
            remember_five(model, &found, at);
            bytes = long_at(data, at - 1);
            push_both(model, bytes, at - 1);
            bytes >>= 8;
        }
        next = at;
    }
    if (emitted < model->to) {
        if (!model->count) {
            return 0;
        }
        put_literals(model, emitted, model->to);
    }
    return 0;
}

static int encode_klauspost_1(table_model *model) {
    const uint8_t *data = model->data;
    int32_t at = model->from, emitted = at, limit = model->to - KLAUSPOST_MARGIN;
    if (model->to - at < KLAUSPOST_MARGIN + 2) {
        return -1;
    }
    uint64_t bytes = long_at(data, at);
    for (;;) {
        int32_t next, candidate;
        for (;;) { /* two positions, and then a step that grows with what did not match */
            uint32_t hash = hash_5(bytes);
            candidate = model->table[hash];
            next = at + 2 + ((at - emitted) >> 5);
            if (next > limit) {
                goto rest;
            }
            uint64_t following = long_at(data, next);
            model->table[hash] = at;
            hash = hash_5(following);
            if (at - candidate < DEFLATE_WINDOW && (uint32_t)bytes == word_at(data, candidate)) {
                model->table[hash] = next;
                break;
            }
            bytes = following;
            at = next++;
            candidate = model->table[hash];
            following >>= 8;
            model->table[hash] = at;
            hash = hash_5(following);
            if (at - candidate < DEFLATE_WINDOW && (uint32_t)bytes == word_at(data, candidate)) {
                model->table[hash] = next;
                break;
            }
            bytes = following;
            at = next;
        }
        for (;;) { /* matches that follow one another */
            match found = {at, candidate, whole_length(model, candidate, at)};
            extend_back(model, emitted, &found);
            put_literals(model, emitted, found.at);
            put_match(model, found.length, found.at - found.there);
            at = emitted = found.at + found.length;
            at = next >= at ? next + 1 : at;
            if (at >= limit) {
                if (at + found.length + 8 < model->to) {
                    model->table[hash_5(long_at(data, at))] = at;
                }
                goto rest;
            }
            bytes = long_at(data, at - 2);
            model->table[hash_5(bytes)] = at - 2;
            bytes >>= 16;
            uint32_t hash = hash_5(bytes);
            candidate = model->table[hash];
            model->table[hash] = at;
            if (at - candidate > DEFLATE_WINDOW || (uint32_t)bytes != word_at(data, candidate)) {
                bytes >>= 8;
                at++;
                break;
            }
        }
    }
rest:
    if (emitted < model->to) {
        if (!model->count) {
            return 0;
        }
        put_literals(model, emitted, model->to);
    }
    return 0;
}

static int encode_go(table_model *model) {
    const uint8_t *data = model->data;
    int32_t at = model->from, emitted = at, limit = model->to - GO_MARGIN;
    if (model->to - at < GO_MARGIN + 2) {
        return -1;
    }
    uint32_t bytes = word_at(data, at), next_hash = hash_go(bytes);
    for (;;) {
        int32_t skip = 32, next = at, candidate;
        for (;;) {
            at = next;
            next = at + (skip >> 5);
            skip += skip >> 5;
            if (next > limit) {
                goto rest;
            }
            candidate = model->table[next_hash];
            uint32_t value = model->values[next_hash], following = word_at(data, next);
            model->table[next_hash] = at;
            model->values[next_hash] = bytes;
            next_hash = hash_go(following);
            if (at - candidate <= DEFLATE_WINDOW && bytes == value) {
                break;
            }
            bytes = following;
        }
        put_literals(model, emitted, at);
        for (;;) {
            int32_t length = match_length(model, candidate, at);
            put_match(model, length, at - candidate);
            at = emitted = at + length;
            if (at >= limit) {
                goto rest;
            }
            uint64_t around = long_at(data, at - 1);
            uint32_t hash = hash_go((uint32_t)around);
            model->table[hash] = at - 1;
            model->values[hash] = (uint32_t)around;
            around >>= 8;
            hash = hash_go((uint32_t)around);
            candidate = model->table[hash];
            uint32_t value = model->values[hash];
            model->table[hash] = at;
            model->values[hash] = (uint32_t)around;
            if (at - candidate > DEFLATE_WINDOW || (uint32_t)around != value) {
                bytes = (uint32_t)(around >> 8);
                next_hash = hash_go(bytes);
                at++;
                break;
            }
        }
    }
rest:
    put_literals(model, emitted, model->to);
    return 0;
}

static uint64_t block_start_distance(const table_model *model, uint32_t at) {
    uint64_t member = (uint64_t)((int64_t)at - model->origin);
    return model->block ? member % model->block : member;
}

static uint32_t unit_end(const table_model *model, uint32_t at) {
    if (!model->block || at >= model->end) {
        return model->end;
    }
    uint64_t left = model->block - block_start_distance(model, at);
    return left < model->end - at ? at + (uint32_t)left : model->end;
}

size_t table_border(const table_model *model, uint32_t at) {
    uint32_t unit = unit_end(model, at);
    uint32_t left = BLOCK - (uint32_t)(block_start_distance(model, at) % BLOCK);
    return at < unit && left < unit - at ? at + left : unit;
}

/* Make the tokens of the bytes from `from` to `to`, which is at most BLOCK behind. */
static void encode(table_model *model, uint32_t from, uint32_t to) {
    model->from = (int32_t)from;
    model->to = (int32_t)to;
    model->count = model->cursor = 0;
    model->cursor_at = from;
    int none = model->family == MODEL_GO_FAST ? encode_go(model)
               : model->level == 1            ? encode_klauspost_1(model)
                                              : encode_klauspost(model);
    uint32_t size = to - from;
    if (none || !model->count || model->count > size - (size >> 4)) {
        model->count = 0;
        put_literals(model, model->from, model->to);
    }
}

static void forget(table_model *model, uint32_t floor) {
    model->floor = (int32_t)floor;
    for (uint32_t i = 0; i < 1u << TABLE_BITS; i++) {
        model->table[i] = NOWHERE;
    }
    for (uint32_t i = 0; model->buckets && i < 1u << TABLE_BITS; i++) {
        model->buckets[i] = (bucket){NOWHERE, NOWHERE};
    }
    for (uint32_t i = 0; model->values && i < 1u << GO_TABLE_BITS; i++) {
        model->values[i] = 0;
    }
}

/* Forget, then learn the dictionary of what begins at `at`, as far as the member and the data go back. */
static void learn(table_model *model, uint32_t at, uint32_t dictionary) {
    uint32_t member = model->origin > 0 ? (uint32_t)model->origin : 0;
    uint32_t from = at - member > dictionary ? at - dictionary : member;
    forget(model, from);
    if (from < at) {
        encode(model, from, at);
    }
}

static void next_block(table_model *model, uint32_t at) {
    if (model->block && block_start_distance(model, at) == 0) {
        learn(model, at, KLAUSPOST_DICTIONARY);
    }
    encode(model, at, (uint32_t)table_border(model, at));
}

void table_begin_member(table_model *model, uint32_t at, uint32_t end) {
    model->origin = at;
    model->end = end;
    forget(model, at);
    model->from = model->to = (int32_t)at;
    model->count = model->cursor = 0;
    model->cursor_at = at;
}

/* Tables, tokens and the model in one piece of memory: they live and die together. */
table_model *table_model_new(const model_choice *choice, const model_text *text, uint32_t end) {
    size_t entries = (size_t)1 << TABLE_BITS, values = (size_t)1 << GO_TABLE_BITS;
    int is_go = choice->family == MODEL_GO_FAST, has_buckets = !is_go && choice->level != 1;
    size_t size = sizeof(table_model) + (BLOCK + 1) * sizeof(deflate_token) +
                  entries * sizeof(int32_t) + (is_go ? values * sizeof(uint32_t) : 0) +
                  (has_buckets ? entries * sizeof(bucket) : 0);
    table_model *model = malloc(size);
    if (!model) {
        return NULL;
    }
    *model = (table_model){.data = text->data, .end = end, .block = choice->block,
                           .family = choice->family, .level = choice->level};
    uint8_t *memory = (uint8_t *)(model + 1);
    model->table = (int32_t *)memory;
    memory += entries * sizeof(int32_t);
    if (has_buckets) {
        model->buckets = (bucket *)memory;
        memory += entries * sizeof(bucket);
    }
    if (is_go) {
        model->values = (uint32_t *)memory;
        memory += values * sizeof(uint32_t);
    }
    model->tokens = (deflate_token *)memory;
    uint32_t start = (uint32_t)text->start;
    model->origin = (int64_t)start - (int64_t)text->position;
    /* A segment begins where a block begins, or else in one: what the tables held there is learned from what is before. */
    uint32_t inside = (uint32_t)(block_start_distance(model, start) % BLOCK);
    uint32_t before = inside < start ? start - inside : 0;
    learn(model, before, block_start_distance(model, start) ? BLOCK : 0);
    model->from = model->to = (int32_t)before;
    model->count = model->cursor = 0;
    model->cursor_at = before;
    if (before < start) {
        encode(model, before, (uint32_t)table_border(model, before));
    }
    return model;
}

/* Be in the block of `at`, with the cursor at its token or behind it. */
static void move_to(table_model *model, uint32_t at) {
    while (at >= (uint32_t)model->to && (uint32_t)model->to < model->end) {
        next_block(model, (uint32_t)model->to);
    }
    while (model->cursor < model->count && model->cursor_at < at) {
        model->cursor_at += deflate_extent(model->tokens[model->cursor++]);
    }
}

deflate_token table_predict(table_model *model, uint32_t at) {
    move_to(model, at);
    int is_start = model->cursor < model->count && model->cursor_at == at;
    return is_start ? model->tokens[model->cursor] : model->data[at];
}

/* Tokens of the block in hand that are those predicted from `at` on, `most` at most; 0 too where none begins there. */
static size_t planned(const table_model *model, uint32_t at, size_t most) {
    size_t left = model->cursor_at == at ? model->count - model->cursor : 0;
    return left < most ? left : most;
}

/* Go behind the next `count` planned tokens; returns where that is. */
static uint32_t pass(table_model *model, size_t count) {
    const deflate_token *tokens = model->tokens + model->cursor;
    model->cursor += (uint32_t)count;
    model->cursor_at = model->cursor == model->count
                           ? (uint32_t)model->to
                           : model->cursor_at + (uint32_t)deflate_extents(tokens, count);
    return model->cursor_at;
}

size_t table_confirm(table_model *model, size_t *at, const deflate_token *tokens, size_t count) {
    size_t done = 0;
    while (done < count) {
        move_to(model, (uint32_t)*at);
        size_t most = planned(model, (uint32_t)*at, count - done);
        if (most) {
            size_t same = deflate_same(tokens + done, model->tokens + model->cursor, most);
            *at = pass(model, same);
            done += same;
            if (same < most) {
                break;
            }
        } else if (tokens[done] == model->data[*at]) {
            (*at)++;
            done++;
        } else {
            break;
        }
    }
    return done;
}

size_t table_produce(table_model *model, size_t *at, deflate_token *tokens, size_t count,
                     size_t end) {
    size_t done = 0;
    while (done < count && *at < end) {
        move_to(model, (uint32_t)*at);
        size_t most = planned(model, (uint32_t)*at, count - done);
        if (most && (size_t)model->to > end) { /* some of them may be too long */
            most = deflate_extent(model->tokens[model->cursor]) <= end - *at;
            if (!most) {
                break;
            }
        }
        if (most) {
            memcpy(tokens + done, model->tokens + model->cursor, most * sizeof *tokens);
            *at = pass(model, most);
            done += most;
        } else {
            tokens[done++] = model->data[(*at)++];
        }
    }
    return done;
}
