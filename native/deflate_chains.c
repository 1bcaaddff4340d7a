/* Hash chains: deflate_chains.h. Positions are stored plus one, so that 0 is the end of a chain; a link is the distance
 * to the position before, 0 where that is out of reach. */
#include "deflate_chains.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"

enum {
    ZLIB_HASH_BITS = 15,
    GO_HASH_BITS = 17,
    MASK = DEFLATE_WINDOW - 1,
    ZLIB_REACH = DEFLATE_WINDOW - 262, /* MAX_DIST: the window less MIN_LOOKAHEAD */
    ZLIB_TOO_FAR = 4096,               /* a match of 3 bytes is not worth more */
    ZLIB_BLOCK_TOKENS = 16383,
    GO_BLOCK_TOKENS = 16384,
    GO_SLIDE_AT = 2 * DEFLATE_WINDOW - 261, /* where in its buffer Go moves the window */
    STEPS_PER_BYTE = 512,                   /* candidates and words compared: what a search may cost */
};

typedef struct {
    uint16_t good, lazy, nice, chain;
    uint16_t greedy; /* 0: lazy; else the longest match whose inside is linked */
} level_rule;

static const level_rule ZLIB_LEVELS[10] = {
    {0, 0, 0, 0, 0},      {4, 0, 8, 4, 4},       {4, 0, 16, 8, 5},      {4, 0, 32, 32, 6},
    {4, 4, 16, 16, 0},    {8, 16, 32, 32, 0},    {8, 16, 128, 128, 0},  {8, 32, 128, 256, 0},
    {32, 128, 258, 1024, 0}, {32, 258, 258, 4096, 0}};

static const level_rule GO_LEVELS[10] = {
    {0, 0, 0, 0, 0},      {0, 0, 0, 0, 0},       {4, 0, 16, 8, 5},      {4, 0, 32, 32, 6},
    {4, 4, 16, 16, 0},    {8, 16, 32, 32, 0},    {8, 16, 128, 128, 0},  {8, 32, 128, 256, 0},
    {32, 128, 258, 1024, 0}, {32, 258, 258, 4096, 0}};

struct chain_model {
    const uint8_t *data;
    int64_t origin;  /* where the member begins, maybe before the data */
    uint32_t end;    /* of the member */
    uint32_t floor;  /* no match reaches before it */
    uint32_t limit;  /* end of what is compressed by itself */
    uint32_t linked; /* positions before it are */
    uint32_t block, minimum;
    int is_go;
    level_rule rule;
    int64_t budget;
    /* the match at the next position, found when the last one was looked at */
    uint32_t waiting_at, waiting_length, waiting_distance;
    uint32_t predicted_at;
    deflate_token predicted;
    uint16_t links[DEFLATE_WINDOW];
    uint32_t heads[1 << GO_HASH_BITS];
};

static const uint32_t NOWHERE = UINT32_MAX;

static uint32_t hash_at(const chain_model *model, uint32_t at) {
    const uint8_t *p = model->data + at;
    if (model->is_go) {
        uint32_t word = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        return (word * 0x1e35a7bdu) >> (32 - GO_HASH_BITS);
    }
    return (((uint32_t)p[0] << 10) ^ ((uint32_t)p[1] << 5) ^ p[2]) & ((1 << ZLIB_HASH_BITS) - 1);
}

static void link_up_to(chain_model *model, uint32_t end) {
    uint32_t last = model->limit >= model->minimum - 1 ? model->limit - (model->minimum - 1) : 0;
    end = end < last ? end : last;
    for (; model->linked < end; model->linked++) {
        uint32_t at = model->linked, *head = &model->heads[hash_at(model, at)];
        uint32_t distance = at + 1 - *head;
        model->links[at & MASK] = (uint16_t)(*head && distance <= DEFLATE_WINDOW ? distance : 0);
        *head = at + 1;
    }
}

static uint32_t block_end(const chain_model *model, uint32_t at) {
    if (!model->block || at >= model->end) {
        return model->end;
    }
    uint64_t left = model->block - (uint64_t)((int64_t)at - model->origin) % model->block;
    return left < model->end - at ? at + (uint32_t)left : model->end;
}

/* A block that is compressed by itself begins, or goes on, with the bytes before it as its dictionary. */
static void enter_block(chain_model *model, uint32_t at) {
    model->limit = block_end(model, at);
    int64_t start = (int64_t)at - (int64_t)((uint64_t)((int64_t)at - model->origin) % model->block);
    if (start - DEFLATE_WINDOW > (int64_t)model->floor) {
        model->floor = (uint32_t)(start - DEFLATE_WINDOW);
    }
    if (model->rule.greedy && start > 0) { /* all of a dictionary is linked */
        memset(model->heads, 0, sizeof model->heads);
        model->linked = model->floor;
    }
}

static void enter(chain_model *model, uint32_t at) {
    if (model->block && at >= model->limit) {
        enter_block(model, at);
    }
    if (model->is_go) {
        int64_t member = (int64_t)at - model->origin;
        if (member >= GO_SLIDE_AT) {
            int64_t slides = 1 + (member - GO_SLIDE_AT) / DEFLATE_WINDOW;
            int64_t floor = model->origin + slides * DEFLATE_WINDOW;
            model->floor = floor > (int64_t)model->floor ? (uint32_t)floor : model->floor;
        }
    }
}

void chain_begin_member(chain_model *model, uint32_t at, uint32_t end) {
    model->origin = at;
    model->end = end;
    model->floor = at;
    model->limit = block_end(model, at);
    model->linked = at;
    model->waiting_at = model->predicted_at = NOWHERE;
}

chain_model *chain_model_new(const model_choice *choice, const model_text *text, uint32_t end,
                             int after_literal) {
    chain_model *model = calloc(1, sizeof *model);
    if (!model) {
        return NULL;
    }
    uint32_t start = (uint32_t)text->start;
    model->data = text->data;
    model->is_go = choice->family == MODEL_GO;
    model->minimum = model->is_go ? 4 : 3;
    model->rule = (model->is_go ? GO_LEVELS : ZLIB_LEVELS)[choice->level];
    model->block = choice->block;
    model->budget = (int64_t)STEPS_PER_BYTE * (int64_t)text->size;
    model->waiting_at = model->predicted_at = NOWHERE;
    model->origin = (int64_t)start - (int64_t)text->position;
    model->end = end;
    model->floor = text->position < start ? start - (uint32_t)text->position : 0;
    model->linked = start > DEFLATE_WINDOW + 1 ? start - DEFLATE_WINDOW - 1 : 0;
    model->linked = model->linked > model->floor ? model->linked : model->floor;
    model->limit = end;
    if (model->block) {
        enter_block(model, start);
    }
    if (after_literal && start > model->floor) {
        chain_predict(model, start - 1);
    }
    return model;
}

size_t chain_border(const chain_model *model, uint32_t at) {
    return block_end(model, at);
}

size_t chain_block_tokens(const chain_model *model) {
    return model->is_go ? GO_BLOCK_TOKENS : ZLIB_BLOCK_TOKENS;
}

/* Whether a match longer than `length`, which is at least 3 of Go, is possible: a filter in front of the comparison. */
static inline int may_be_longer(const uint8_t *a, const uint8_t *b, uint32_t length, int is_go) {
    if (is_go || length >= 3) {
        return load_le32(a + length - 3) == load_le32(b + length - 3);
    }
    return a[length] == b[length];
}

/* `find` for one of the two encoders: what they do not share costs nothing then. */
static inline __attribute__((always_inline)) uint32_t walk(chain_model *model, uint32_t at,
                                                           uint32_t length, uint32_t *distance,
                                                           uint32_t most, const int is_go) {
    uint32_t best = length, total = 0, tries = model->rule.chain, nice = model->rule.nice;
    uint32_t reach = is_go ? DEFLATE_WINDOW : ZLIB_REACH;
    /* zlib takes position 0 of its window for the end of a chain. */
    uint32_t back = at - model->floor - (is_go ? 0 : at > model->floor);
    tries = length >= model->rule.good ? tries >> 2 : tries;
    nice = nice < most ? nice : most;
    reach = reach < back ? reach : back;
    const uint8_t *here = model->data + at;
    const uint16_t *links = model->links;
    uint32_t used = 0, compared = 0;
    for (; used < tries; used++) {
        uint32_t link = links[(at - total) & MASK];
        total += link;
        if (!link || total > reach) {
            break;
        }
        if (!is_go && total == ZLIB_REACH && total != link) {
            break; /* only the first candidate may be that far away */
        }
        const uint8_t *there = here - total;
        if (may_be_longer(here, there, best, is_go)) {
            uint32_t common = deflate_common(there, here, most);
            compared += common >> 3;
            if (common > best && (!is_go || common > 4 || total <= ZLIB_TOO_FAR)) {
                best = common;
                *distance = total;
                if (common >= nice) {
                    used++;
                    break;
                }
            }
        }
        if (is_go && total == DEFLATE_WINDOW) {
            used++;
            break; /* its link was overwritten */
        }
    }
    model->budget -= (int64_t)used + compared;
    return best;
}

/* The longest match at `at` that is longer than `length`; gives `length` back where there is none. */
static uint32_t find(chain_model *model, uint32_t at, uint32_t length, uint32_t *distance) {
    link_up_to(model, at + 1);
    uint32_t most = model->limit - at;
    most = most < DEFLATE_MAX_MATCH ? most : DEFLATE_MAX_MATCH;
    if (model->linked < at + 1 || length >= most || model->budget < 0) {
        return length;
    }
    if (model->is_go) {
        return walk(model, at, length, distance, most, 1);
    }
    uint32_t best = walk(model, at, length, distance, most, 0);
    if (!model->rule.greedy && best > length && best == 3 && *distance > ZLIB_TOO_FAR) {
        return length > 2 ? length : 2;
    }
    return best;
}

static deflate_token choose(chain_model *model, uint32_t at) {
    uint32_t length = model->minimum - 1, distance = 0;
    enter(model, at);
    if (at >= model->limit) {
        return model->data[at];
    }
    if (model->waiting_at == at) {
        length = model->waiting_length;
        distance = model->waiting_distance;
    } else {
        length = find(model, at, length, &distance);
    }
    model->waiting_at = NOWHERE;
    if (length < model->minimum) {
        return model->data[at];
    }
    if (!model->rule.greedy && length < model->rule.lazy && at + 1 < model->limit &&
        (!model->is_go || model->limit - at - 1 > length)) {
        uint32_t next_distance = 0;
        enter(model, at + 1);
        uint32_t next = find(model, at + 1, model->is_go ? model->minimum - 1 : length, &next_distance);
        if (next > length) {
            model->waiting_at = at + 1;
            model->waiting_length = next;
            model->waiting_distance = next_distance;
            return model->data[at];
        }
    }
    return deflate_match(length, distance);
}

deflate_token chain_predict(chain_model *model, uint32_t at) {
    if (model->predicted_at != at) {
        model->predicted = choose(model, at);
        model->predicted_at = at;
    }
    return model->predicted;
}

void chain_follow(chain_model *model, uint32_t at, deflate_token token) {
    uint32_t length = deflate_extent(token);
    if (model->rule.greedy && length > model->rule.greedy && model->linked < at + length) {
        model->linked = at + length;
    }
}

void chain_correct(chain_model *model, uint32_t at, deflate_token token) {
    model->waiting_at = model->predicted_at = NOWHERE;
    chain_follow(model, at, token);
}

void chain_pass_over(chain_model *model) {
    model->waiting_at = model->predicted_at = NOWHERE;
}
