/* Hash chains: deflate_chains.h. A link is the distance to the position before
 * of the same hash, 0 where that is out of reach.
 *
 * A lazy encoder links every position, so positions are linked in a loop of its own, far ahead of the search, and a search
 * may go along another chain than its own: a match longer than what is found begins with the bytes that were found
 * and one more, so it is in the chains of all of them, and the thinnest one leads past the most candidates. What an
 * encoder with a limit would no longer have looked at is told by the ranks of positions in their chains.
 *
 * What a search costs the encoder, which bounds how long one is imitated (`budget`), is not known then, only that it is
 * not more than so much. Where that may be too much the model says that it is unsure, and all is done again with a model
 * that counts.
 */
#include "deflate_chains.h"

#include <string.h>

#include "bytes.h"
#include "scratch.h"

enum {
    ZLIB_HASH_BITS = 15,
    GO_HASH_BITS = 17,
    RING = 2 * DEFLATE_WINDOW, /* positions with links: the window, and those linked ahead */
    MASK = RING - 1,
    AHEAD = 2048,
    FIRST = DEFLATE_WINDOW + 1, /* position 0 in the heads: a 0 there is out of reach */
    MOST_THIN = 256, /* candidates: what longer chains cost is not bounded well enough */
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
    int is_counting;
    /* the match at the next position, found when the last one was looked at */
    uint32_t waiting_at, waiting_length, waiting_distance;
    uint32_t predicted_at;
    deflate_token predicted;
    uint16_t links[RING], ranks[RING];
    uint32_t heads[1 << GO_HASH_BITS];
};

static const uint32_t NOWHERE = UINT32_MAX;

static inline uint32_t hash_at(const chain_model *model, uint32_t at, const int is_go) {
    const uint8_t *p = model->data + at;
    if (is_go) {
        return (__builtin_bswap32(load_le32(p)) * 0x1e35a7bdu) >> (32 - GO_HASH_BITS);
    }
    return (((uint32_t)p[0] << 10) ^ ((uint32_t)p[1] << 5) ^ p[2]) & ((1 << ZLIB_HASH_BITS) - 1);
}

/* The heads are too many for the nearest cache: hashes are known early enough to fetch them before they are needed. */
static inline __attribute__((always_inline)) void link_range(chain_model *model, uint32_t end, const int is_go) {
    enum { EARLY = 16 };
    uint32_t hashes[EARLY], *heads = model->heads, from = model->linked;
    uint16_t *links = model->links, *ranks = model->ranks;
    for (uint32_t at = from; at < end && at < from + EARLY; at++) {
        hashes[at % EARLY] = hash_at(model, at, is_go);
    }
    for (uint32_t at = from; at < end; at++) {
        uint32_t *head = &heads[hashes[at % EARLY]], distance = at + FIRST - *head;
        if (at + EARLY < end) {
            uint32_t hash = hash_at(model, at + EARLY, is_go);
            hashes[at % EARLY] = hash;
            __builtin_prefetch(&heads[hash]);
        }
        uint32_t in_reach = 0u - (distance <= DEFLATE_WINDOW); /* all bits, or none: nobody foresees which */
        uint32_t link = distance & in_reach, rank = ranks[(at - link) & MASK] + 1u;
        links[at & MASK] = (uint16_t)link;
        ranks[at & MASK] = (uint16_t)(rank & in_reach);
        *head = at + FIRST;
    }
    model->linked = end;
}

/* Have all linked up to `at`, or as far as the encoder links what is in hand. */
static void link_up_to(chain_model *model, uint32_t at) {
    uint32_t last = model->limit >= model->minimum - 1 ? model->limit - (model->minimum - 1) : 0;
    uint32_t end = model->rule.greedy ? at + 1 : at + DEFLATE_MAX_MATCH;
    if (model->linked >= end || model->linked >= last) {
        return;
    }
    end += model->rule.greedy ? 0 : AHEAD;
    end = end < last ? end : last;
    if (model->is_go) {
        link_range(model, end, 1);
    } else {
        link_range(model, end, 0);
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
                             int after_literal, int is_counting) {
    size_t room;
    chain_model *model = scratch_take(sizeof *model, &room);
    if (!model) {
        return NULL;
    }
    memset(model, 0, sizeof *model);
    uint32_t start = (uint32_t)text->start;
    model->data = text->data;
    model->is_go = choice->family == MODEL_GO;
    model->minimum = model->is_go ? 4 : 3;
    model->rule = (model->is_go ? GO_LEVELS : ZLIB_LEVELS)[choice->level];
    model->block = choice->block;
    model->is_counting = is_counting || model->rule.greedy || model->rule.chain > MOST_THIN;
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

/* `find` as the encoder does it; for one of the two, so that what they do not share costs nothing. */
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

/* The thinnest of the chains that lead from a match of `length` bytes at the distance `total` to longer ones: which byte of
 * it the chain is of, and where its next position is. 0: there are no longer ones. */
static inline __attribute__((always_inline)) uint32_t thinnest(const chain_model *model, uint32_t at, uint32_t length,
                                                               uint32_t total, uint32_t *offset, const uint32_t hashed) {
    enum { MOST = 16 };
    uint32_t last = length + 1 - hashed, longest = 0;
    const uint16_t *links = model->links;
    for (uint32_t i = last > MOST ? last - MOST : 0; i < last; i++) { /* the match has the same bytes */
        uint32_t link = links[(at - total + i) & MASK];
        if (!link) {
            return 0;
        }
        *offset = link > longest ? i : *offset;
        longest = link > longest ? link : longest;
    }
    uint32_t link = links[(at + last) & MASK]; /* of the byte that the match does not have, too */
    if (!link) {
        return 0;
    }
    *offset = link > total + longest ? last : *offset;
    return link > total + longest ? link : total + longest;
}

/* The same match as `walk` finds if it is longer than `least`, which is not below `length`, by the thinnest chains. */
static inline __attribute__((always_inline)) uint32_t search(chain_model *model, uint32_t at,
                                                             uint32_t length, uint32_t least,
                                                             uint32_t *distance, uint32_t most,
                                                             const int is_go) {
    const uint32_t hashed = is_go ? 4 : 3;
    const uint16_t *links = model->links, *ranks = model->ranks;
    const uint8_t *here = model->data + at;
    uint32_t best = least, nice = model->rule.nice < most ? model->rule.nice : most;
    uint32_t tries = length >= model->rule.good ? model->rule.chain >> 2 : model->rule.chain;
    uint32_t back = at - model->floor - (is_go ? 0 : at > model->floor);
    uint32_t reach = is_go ? DEFLATE_WINDOW : ZLIB_REACH - 1, offset = 0;
    reach = reach < back ? reach : back;
    uint32_t total = links[at & MASK], rank = ranks[at & MASK];
    if (!is_go && total == ZLIB_REACH) {
        return walk(model, at, length, distance, most, is_go); /* the first one may be that far */
    }
    int is_own = 1; /* the chain of `at` itself, without gaps: no more than `tries` of it count */
    if (best >= hashed) {
        uint32_t first = links[(at + best + 1 - hashed) & MASK];
        is_own = first == total;
        offset = first > total ? best + 1 - hashed : 0;
        total = !first ? 0 : first > total ? first : total;
    }
    for (uint32_t left = tries; total && total <= reach; left--) {
        const uint8_t *there = here - total;
        if (!left) {
            return is_own ? best : walk(model, at, length, distance, most, is_go);
        }
        uint32_t next = links[(at + offset - total) & MASK];
        if (may_be_longer(here, there, best, is_go)) {
            uint32_t common = deflate_common(there, here, most);
            if (common > best && (!is_go || common > 4 || total <= ZLIB_TOO_FAR)) {
                if (((rank - ranks[(at - total) & MASK]) & 0xffff) > tries) {
                    break;
                }
                best = common;
                *distance = total;
                if (common >= nice) {
                    break;
                }
                is_own = 0;
                total = thinnest(model, at, best, total, &offset, hashed);
                continue;
            }
        }
        total = next ? total + next : 0;
    }
    model->budget -= (int64_t)tries * (1 + (best >> 3));
    return best;
}

/* The longest match at `at` that is longer than `length`; gives `length` back where there is none. One that is not longer
 * than `least` may be left out. */
static inline __attribute__((always_inline)) uint32_t find_of(chain_model *model, uint32_t at, uint32_t length,
                                                              uint32_t least, uint32_t *distance,
                                                              const int is_go) {
    link_up_to(model, at);
    uint32_t most = model->limit - at;
    most = most < DEFLATE_MAX_MATCH ? most : DEFLATE_MAX_MATCH;
    if (model->linked < at + 1 || length >= most || model->budget < 0) {
        return length;
    }
    if (model->is_counting) {
        return walk(model, at, length, distance, most, is_go);
    }
    return least < most ? search(model, at, length, least, distance, most, is_go) : least;
}

static uint32_t find(chain_model *model, uint32_t at, uint32_t length, uint32_t least, uint32_t *distance) {
    if (model->is_go) {
        return find_of(model, at, length, least, distance, 1);
    }
    uint32_t best = find_of(model, at, length, length, distance, 0);
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
        length = find(model, at, length, length, &distance);
    }
    model->waiting_at = NOWHERE;
    if (length < model->minimum) {
        return model->data[at];
    }
    if (!model->rule.greedy && length < model->rule.lazy && at + 1 < model->limit &&
        (!model->is_go || model->limit - at - 1 > length)) {
        uint32_t next_distance = 0;
        enter(model, at + 1);
        uint32_t next = find(model, at + 1, model->is_go ? model->minimum - 1 : length, length,
                             &next_distance);
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

int chain_is_unsure(const chain_model *model) {
    return !model->is_counting && model->budget < 0;
}
