/* Hash tables: deflate_tables.h.
 *
 * What a block's encoder
 * writes is kept as tokens in order, with a cursor: at a position that is not the start of one of them (because the
 * real encoder differed before) a literal is predicted.
 */
#include "deflate_tables.h"

#include <stdlib.h>

#include "deflate_encoders.h"
#include "scratch.h"

enum {
    BLOCK = 65535,
    KLAUSPOST_DICTIONARY = 16384, /* of pgzip */
};

struct table_model {
    int64_t origin; /* where the member begins, maybe before the data */
    uint32_t end;   /* of the member */
    uint32_t size;  /* bytes that are compressed by themselves */
    uint8_t family, level;
    encoder_block block; /* in hand */
    uint32_t count, cursor, cursor_at; /* its tokens */
};

static uint64_t block_start_distance(const table_model *model, uint32_t at) {
    uint64_t member = (uint64_t)((int64_t)at - model->origin);
    return model->size ? member % model->size : member;
}

static uint32_t unit_end(const table_model *model, uint32_t at) {
    if (!model->size || at >= model->end) {
        return model->end;
    }
    uint64_t left = model->size - block_start_distance(model, at);
    return left < model->end - at ? at + (uint32_t)left : model->end;
}

size_t table_border(const table_model *model, uint32_t at) {
    uint32_t unit = unit_end(model, at);
    uint32_t left = BLOCK - (uint32_t)(block_start_distance(model, at) % BLOCK);
    return at < unit && left < unit - at ? at + left : unit;
}

/* Make the tokens of the bytes from `from` to `to`, which is at most BLOCK behind. */
static void encode(table_model *model, uint32_t from, uint32_t to) {
    encoder_block *block = &model->block;
    block->from = (int32_t)from;
    block->to = (int32_t)to;
    model->cursor = 0;
    model->cursor_at = from;
    model->count = model->family == MODEL_GO_FAST ? encode_go_fast(block)
                   : model->level == 1            ? encode_klauspost_1(block)
                                                  : encode_klauspost(block, model->level);
    uint32_t size = to - from;
    if (!model->count || model->count > size - (size >> 4)) {
        put_literals(block->tokens, block->data, block->from, block->to, block->to);
        model->count = size;
    }
}

static void forget(table_model *model, uint32_t floor) {
    encoder_block *block = &model->block;
    block->floor = (int32_t)floor;
    for (uint32_t i = 0; i < 1u << ENCODER_TABLE_BITS; i++) {
        block->table[i] = ENCODER_NOWHERE;
    }
    for (uint32_t i = 0; block->buckets && i < 1u << ENCODER_TABLE_BITS; i++) {
        block->buckets[i] = (uint32_t)ENCODER_NOWHERE * UINT64_C(0x100000001);
    }
    for (uint32_t i = 0; block->values && i < 1u << ENCODER_GO_BITS; i++) {
        block->values[i] = 0;
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
    if (model->size && block_start_distance(model, at) == 0) {
        learn(model, at, KLAUSPOST_DICTIONARY);
    }
    encode(model, at, (uint32_t)table_border(model, at));
}

void table_begin_member(table_model *model, uint32_t at, uint32_t end) {
    model->origin = at;
    model->end = end;
    forget(model, at);
    model->block.from = model->block.to = (int32_t)at;
    model->count = model->cursor = 0;
    model->cursor_at = at;
}

/* Tables, tokens and the model in one piece of memory: they live and die together. */
table_model *table_model_new(const model_choice *choice, const model_text *text, uint32_t end) {
    size_t entries = (size_t)1 << ENCODER_TABLE_BITS, values = (size_t)1 << ENCODER_GO_BITS;
    int is_go = choice->family == MODEL_GO_FAST, has_buckets = !is_go && choice->level != 1;
    size_t size = sizeof(table_model) + (BLOCK + ENCODER_SLACK) * sizeof(deflate_token) +
                  entries * sizeof(int32_t) + (is_go ? values * sizeof(uint32_t) : 0) +
                  (has_buckets ? entries * sizeof(encoder_bucket) : 0);
    table_model *model = scratch_take(size, &size);
    if (!model) {
        return NULL;
    }
    *model = (table_model){.end = end, .size = choice->block,
                           .family = choice->family, .level = choice->level};
    encoder_block *block = &model->block;
    block->data = text->data;
    uint8_t *memory = (uint8_t *)(model + 1);
    if (has_buckets) {
        block->buckets = (encoder_bucket *)memory;
        memory += entries * sizeof(encoder_bucket);
    }
    block->table = (int32_t *)memory;
    memory += entries * sizeof(int32_t);
    if (is_go) {
        block->values = (uint32_t *)memory;
        memory += values * sizeof(uint32_t);
    }
    block->tokens = (deflate_token *)memory;
    uint32_t start = (uint32_t)text->start;
    model->origin = (int64_t)start - (int64_t)text->position;
    /* A segment begins where a block begins, or else in one: what the tables held there is learned from what is before. */
    uint32_t inside = (uint32_t)(block_start_distance(model, start) % BLOCK);
    uint32_t before = inside < start ? start - inside : 0;
    learn(model, before, block_start_distance(model, start) ? BLOCK : 0);
    model->block.from = model->block.to = (int32_t)before;
    model->count = model->cursor = 0;
    model->cursor_at = before;
    if (before < start) {
        encode(model, before, (uint32_t)table_border(model, before));
    }
    return model;
}

/* Be in the block of `at`, with the cursor at its token or behind it. */
static void move_to(table_model *model, uint32_t at) {
    while (at >= (uint32_t)model->block.to && (uint32_t)model->block.to < model->end) {
        next_block(model, (uint32_t)model->block.to);
    }
    while (model->cursor < model->count && model->cursor_at < at) {
        model->cursor_at += deflate_extent(model->block.tokens[model->cursor++]);
    }
}

deflate_token table_predict(table_model *model, uint32_t at) {
    move_to(model, at);
    int is_start = model->cursor < model->count && model->cursor_at == at;
    return is_start ? model->block.tokens[model->cursor] : model->block.data[at];
}

/* Tokens of the block in hand that are those predicted from `at` on, `most` at most; 0 too where none begins there. */
static size_t planned(const table_model *model, uint32_t at, size_t most) {
    size_t left = model->cursor_at == at ? model->count - model->cursor : 0;
    return left < most ? left : most;
}

/* Go behind the next `count` planned tokens; returns where that is. */
static uint32_t pass(table_model *model, size_t count) {
    const deflate_token *tokens = model->block.tokens + model->cursor;
    model->cursor += (uint32_t)count;
    model->cursor_at = model->cursor == model->count
                           ? (uint32_t)model->block.to
                           : model->cursor_at + (uint32_t)deflate_extents(tokens, count);
    return model->cursor_at;
}

size_t table_confirm(table_model *model, size_t *at, const deflate_token *tokens, size_t count) {
    size_t done = 0;
    while (done < count) {
        move_to(model, (uint32_t)*at);
        size_t most = planned(model, (uint32_t)*at, count - done);
        if (most) {
            size_t same = deflate_same(tokens + done, model->block.tokens + model->cursor, most);
            *at = pass(model, same);
            done += same;
            if (same < most) {
                break;
            }
        } else if (tokens[done] == model->block.data[*at]) {
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
        if (most && (size_t)model->block.to > end) { /* some of them may be too long */
            most = deflate_extent(model->block.tokens[model->cursor]) <= end - *at;
            if (!most) {
                break;
            }
        }
        if (most) {
            memcpy(tokens + done, model->block.tokens + model->cursor, most * sizeof *tokens);
            *at = pass(model, most);
            done += most;
        } else {
            tokens[done++] = model->block.data[(*at)++];
        }
    }
    return done;
}
