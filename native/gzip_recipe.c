/* Recipes: gzip_recipe.h. One range coder a segment; both directions go through the same functions wherever the order
 * of things allows it, so that they cannot disagree. */
#include "gzip_recipe.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "deflate_write.h"
#include "range_coder.h"
#include "scratch.h"

/* What the coder has learned of a segment; the number of a bit is the context it stands in. */
typedef struct {
    range_coder coder;
    struct {
        range_bit state[2], more, same_header, final, dynamic, fixed, padding[8], same_trailer;
        range_bit usual_count, is_match[2], same_length, same_distance;
        range_bit other_header, other_form, same_code_length[2][2];
    } bits;
    struct {
        range_number member_end, header_size, stored, count, misses, run, length, distance;
        range_number code_count, code_length, header_bits;
    } numbers;
} recipe_coder;

enum { LEAST_USUAL = 1024 };

typedef struct {
    uint32_t index;
    deflate_token predicted;
} miss;

typedef struct {
    recipe_coder code;
    deflate_model *model;
    int is_counting; /* the model */
    huffman *space;
    enum huffman_style style;
    const uint8_t *data;
    size_t at, end;          /* in the segment */
    size_t member, member_end; /* the member in hand: where it begins (SIZE_MAX: before the segment) and ends */
    size_t usual;            /* tokens of a block */
    bit_writer scratch;      /* a header as it was predicted */
    code_lengths lengths;    /* and its code lengths */
    miss *misses;
    size_t miss_room;
} recipe_state;

static void init_contexts(recipe_coder *code) {
    range_bits_init((range_bit *)&code->bits, sizeof code->bits / sizeof(range_bit));
    range_bits_init((range_bit *)&code->numbers, sizeof code->numbers / sizeof(range_bit));
}

static unsigned code_bit(recipe_state *state, range_bit *bit, unsigned value) {
    return range_code(&state->code.coder, bit, value);
}

static uint32_t code_number(recipe_state *state, range_number *number, uint32_t value) {
    return range_number_code(&state->code.coder, number, value);
}

/* A signed difference as a number: 0, 1, -1, 2, -2 ... */
static uint32_t folded(int32_t value) {
    return value > 0 ? 2 * (uint32_t)value - 1 : 2 * (uint32_t)-value;
}

static int32_t unfolded(uint32_t value) {
    return value & 1 ? (int32_t)(value / 2 + 1) : -(int32_t)(value / 2);
}

/* ---- The same in both directions ---- */

static size_t code_member_end(recipe_state *state, size_t segment_end, size_t end) {
    uint32_t left = end <= segment_end ? (uint32_t)(end - state->at) + 1 : 0;
    left = code_number(state, &state->code.numbers.member_end, left);
    return left ? state->at + left - 1 : SIZE_MAX;
}

static deflate_token code_correction(recipe_state *state, deflate_token predicted,
                                     deflate_token actual, uint8_t literal) {
    recipe_coder *code = &state->code;
    unsigned was = predicted >> 31;
    if (!code_bit(state, &code->bits.is_match[was], actual >> 31)) {
        return literal;
    }
    int32_t expected = was ? (int32_t)deflate_match_length(predicted) : DEFLATE_MIN_MATCH;
    int32_t length = (int32_t)deflate_match_length(actual);
    if (was && code_bit(state, &code->bits.same_length, length == expected)) {
        length = expected;
    } else {
        length = expected + unfolded(code_number(state, &code->numbers.length, folded(length - expected)));
    }
    uint32_t distance = deflate_match_distance(actual);
    if (was && code_bit(state, &code->bits.same_distance, distance == deflate_match_distance(predicted))) {
        distance = deflate_match_distance(predicted);
    } else {
        distance = code_number(state, &code->numbers.distance, distance - 1) + 1;
    }
    if (length < DEFLATE_MIN_MATCH || length > DEFLATE_MAX_MATCH || distance > DEFLATE_WINDOW) {
        return literal; /* only where the recipe is damaged */
    }
    return deflate_match((uint32_t)length, distance);
}

/* The code lengths of one kind, as differences to those that were predicted. */
static unsigned code_kind(recipe_state *state, unsigned kind, unsigned least, unsigned room,
                          const uint8_t *predicted, unsigned predicted_count, uint8_t *actual,
                          unsigned count) {
    recipe_coder *code = &state->code;
    int32_t change = (int32_t)count - (int32_t)predicted_count;
    change = unfolded(code_number(state, &code->numbers.code_count, folded(change)));
    int32_t got = (int32_t)predicted_count + change;
    count = got < (int32_t)least || got > (int32_t)room ? least : (unsigned)got;
    unsigned context = 1;
    for (unsigned i = 0; i < count; i++) {
        int32_t expected = i < predicted_count ? predicted[i] : 0;
        unsigned same = code_bit(state, &code->bits.same_code_length[kind][context], actual[i] == expected);
        context = same;
        int32_t length = expected;
        if (!same) {
            length += unfolded(1 + code_number(state, &code->numbers.code_length,
                                               folded((int32_t)actual[i] - expected) - 1));
        }
        actual[i] = (uint8_t)(length < 0 || length > DEFLATE_MAX_BITS ? 0 : length);
    }
    return count;
}

static void code_code_lengths(recipe_state *state, const code_lengths *predicted, code_lengths *actual) {
    actual->literals = code_kind(state, 0, 257, DEFLATE_LITERALS, predicted->literal,
                                 predicted->literals, actual->literal, actual->literals);
    actual->distances = code_kind(state, 1, 1, DEFLATE_DISTANCES, predicted->distance,
                                  predicted->distances, actual->distance, actual->distances);
}

/* The header of a dynamic block with these lengths, in `scratch`; returns its bits. */
static uint64_t standard_header(recipe_state *state, const code_lengths *lengths) {
    state->scratch.size = 0;
    state->scratch.bits = 0;
    state->scratch.count = 0;
    deflate_write_header(&state->scratch, state->space, state->style, lengths);
    uint64_t bits = state->scratch.size * 8 + state->scratch.count;
    bit_writer_put(&state->scratch, 0, 7);
    return bits;
}

static uint32_t crc32_of(const uint8_t *data, size_t size) {
    uint32_t table[256], crc = UINT32_MAX;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t word = i;
        for (int bit = 0; bit < 8; bit++) {
            word = word >> 1 ^ (word & 1 ? 0xedb88320u : 0);
        }
        table[i] = word;
    }
    for (size_t i = 0; i < size; i++) {
        crc = crc >> 8 ^ table[(crc ^ data[i]) & 255];
    }
    return ~crc;
}

/* Whether the trailer is that of the bytes before can be told only of a member that is all here. */
static void code_trailer(recipe_state *state, uint8_t *trailer) {
    uint8_t predicted[PARSE_TRAILER] = {0};
    int is_whole = state->member != SIZE_MAX, is_decoding = state->code.coder.is_decoding;
    if (is_whole) {
        store_le32(predicted, crc32_of(state->data + state->member, state->at - state->member));
        store_le32(predicted + 4, (uint32_t)(state->at - state->member));
    }
    if (is_whole && code_bit(state, &state->code.bits.same_trailer,
                             is_decoding || memcmp(trailer, predicted, PARSE_TRAILER) == 0)) {
        memcpy(trailer, predicted, PARSE_TRAILER);
        return;
    }
    for (unsigned i = 0; i < PARSE_TRAILER; i++) {
        trailer[i] = (uint8_t)range_raw(&state->code.coder, 8, trailer[i]);
    }
}

static uint8_t code_padding(recipe_state *state, unsigned bits, unsigned value) {
    unsigned result = 0;
    for (unsigned i = 0; i < bits; i++) {
        result |= code_bit(state, &state->code.bits.padding[i], (value >> i) & 1) << i;
    }
    return (uint8_t)result;
}

static void begin_member(recipe_state *state, size_t segment_end, size_t end) {
    state->member = state->at;
    state->member_end = code_member_end(state, segment_end, end);
}

static int state_init(recipe_state *state, const model_choice *choice, const uint8_t *data,
                      size_t start, size_t end) {
    init_contexts(&state->code);
    state->style = choice->family == MODEL_ZLIB ? HUFFMAN_ZLIB : HUFFMAN_GO;
    state->data = data;
    state->at = start;
    state->end = end;
    state->member = SIZE_MAX;
    state->space = huffman_new();
    bit_writer_reserve(&state->scratch, HEADER_BYTES);
    return state->space && !state->scratch.failed ? 0 : -1;
}

static int begin_model(recipe_state *state, const model_choice *choice, const model_text *text,
                       int after_literal) {
    size_t end = state->member_end < text->size ? state->member_end : text->size;
    state->model = model_new(choice, text, end, after_literal, state->is_counting);
    state->usual = state->model ? model_block_tokens(state->model) : 0;
    return state->model ? 0 : -1;
}

static void model_enter_member(recipe_state *state, size_t size) {
    model_begin_member(state->model, state->at,
                       state->member_end < size ? state->member_end : size);
}

/* Where a block of the usual kind ends. */
static size_t usual_end(const recipe_state *state) {
    size_t end = state->end < state->member_end ? state->end : state->member_end;
    size_t border = model_border(state->model, state->at);
    return border < end ? border : end;
}

/* An encoder of another block size keeps to it; the blocks at ends of things say nothing. */
static void learn_usual(recipe_state *state, size_t count) {
    if (state->usual != SIZE_MAX && count >= LEAST_USUAL) {
        state->usual = count;
    }
}

static void state_free(recipe_state *state) {
    model_free(state->model);
    huffman_free(state->space);
    free(state->scratch.bytes);
    free(state->misses);
}

/* ---- Encode ---- */

static uint32_t bits_at(const uint8_t *data, uint64_t bit, unsigned count) {
    uint32_t value = 0;
    for (unsigned i = 0; i < count; i++, bit++) {
        value |= (uint32_t)((data[bit >> 3] >> (bit & 7)) & 1) << i;
    }
    return value;
}

static int is_header(const recipe_state *state, uint64_t bits, const uint8_t *data,
                     const deflate_event *event) {
    if (bits != event->bit_size) {
        return 0;
    }
    for (uint64_t at = 0; at < bits; at += 8) {
        unsigned count = bits - at < 8 ? (unsigned)(bits - at) : 8;
        if (bits_at(data, event->bit + at, count) != bits_at(state->scratch.bytes, at, count)) {
            return 0;
        }
    }
    return 1;
}

static void encode_block_header(recipe_state *state, const deflate_segment *segment,
                                const deflate_event *event, const deflate_token *tokens) {
    recipe_coder *code = &state->code;
    code_lengths actual = {.literals = 0};
    uint8_t lengths[DEFLATE_LITERALS + DEFLATE_DISTANCES] = {0};
    uint64_t bit = event->bit;
    huffman_lengths(state->space, state->style, tokens, event->tokens, &state->lengths);
    int is_predicted =
        is_header(state, standard_header(state, &state->lengths), segment->data, event);
    code_bit(state, &code->bits.other_header, !is_predicted);
    if (is_predicted) {
        return;
    }
    deflate_read_lengths(segment->data, segment->size, &bit, lengths, &actual.literals,
                         &actual.distances);
    memcpy(actual.literal, lengths, actual.literals);
    memcpy(actual.distance, lengths + actual.literals, actual.distances);
    int is_standard = is_header(state, standard_header(state, &actual), segment->data, event);
    code_bit(state, &code->bits.other_form, !is_standard);
    if (is_standard) {
        code_code_lengths(state, &state->lengths, &actual);
        return;
    }
    code_number(state, &code->numbers.header_bits, event->bit_size);
    for (uint32_t at = 0; at < event->bit_size; at += 8) {
        unsigned count = event->bit_size - at < 8 ? event->bit_size - at : 8;
        range_raw(&code->coder, count, bits_at(segment->data, event->bit + at, count));
    }
}

/* Whether the block has the tokens that one is expected to have: as many as usual, or up to where blocks end. */
static int is_usual_count(const recipe_state *state, size_t count, size_t plain) {
    size_t end = usual_end(state), left = end > state->at ? end - state->at : 0;
    return plain == left ? count <= state->usual : plain < left && count == state->usual;
}

static int note_miss(recipe_state *state, size_t count, size_t index, deflate_token predicted) {
    if (count == state->miss_room) {
        size_t room = state->miss_room ? 2 * state->miss_room : 256;
        miss *grown = realloc(state->misses, room * sizeof(miss));
        if (!grown) {
            return -1;
        }
        state->misses = grown;
        state->miss_room = room;
    }
    state->misses[count] = (miss){(uint32_t)index, predicted};
    return 0;
}

static int encode_tokens(recipe_state *state, const deflate_token *tokens, size_t count, size_t plain) {
    recipe_coder *code = &state->code;
    size_t misses = 0;
    unsigned is_usual = (unsigned)is_usual_count(state, count, plain);
    if (!code_bit(state, &code->bits.usual_count, is_usual)) {
        code_number(state, &code->numbers.count, (uint32_t)count);
        learn_usual(state, count);
    }
    for (size_t i = 0; i < count; i++) {
        i += model_confirm(state->model, &state->at, tokens + i, count - i);
        if (i < count) {
            if (note_miss(state, misses++, i, model_predict(state->model, state->at))) {
                return -1;
            }
            model_correct(state->model, state->at, tokens[i]);
            state->at += deflate_extent(tokens[i]);
        }
    }
    code_number(state, &code->numbers.misses, (uint32_t)misses);
    size_t last = 0;
    for (size_t i = 0; i < misses; i++) {
        const miss *wrong = &state->misses[i];
        deflate_token actual = tokens[wrong->index];
        code_number(state, &code->numbers.run, (uint32_t)(wrong->index - last));
        code_correction(state, wrong->predicted, actual, 0);
        last = wrong->index + 1;
    }
    return 0;
}

static int encode_block(recipe_state *state, const deflate_segment *segment,
                        const deflate_event *event, const deflate_token *tokens) {
    recipe_coder *code = &state->code;
    code_bit(state, &code->bits.final, event->is_final);
    if (!code_bit(state, &code->bits.dynamic, event->type == DEFLATE_DYNAMIC) &&
        !code_bit(state, &code->bits.fixed, event->type == DEFLATE_FIXED)) {
        code_number(state, &code->numbers.stored, event->plain);
        unsigned padding = (unsigned)(-event->bit & 7);
        code_padding(state, padding, event->padding);
        model_pass_over(state->model);
        state->at += event->plain;
        return 0;
    }
    if (encode_tokens(state, tokens, event->tokens, event->plain)) {
        return -1;
    }
    if (event->type == DEFLATE_DYNAMIC) {
        encode_block_header(state, segment, event, tokens);
    }
    return 0;
}

static void encode_header(recipe_state *state, const deflate_segment *segment,
                          const deflate_event *event, const uint8_t *header, size_t header_size) {
    const uint8_t *bytes = segment->data + (event->bit >> 3);
    size_t size = event->bit_size >> 3;
    int is_same = size == header_size && memcmp(bytes, header, size) == 0;
    if (!code_bit(state, &state->code.bits.same_header, (unsigned)is_same)) {
        code_number(state, &state->code.numbers.header_size, (uint32_t)size);
        for (size_t i = 0; i < size; i++) {
            range_raw(&state->code.coder, 8, bytes[i]);
        }
    }
}

/* Where the member of the event `index` ends, if its trailer is in this segment. */
static size_t find_member_end(const deflate_segment *segment, size_t index, size_t at) {
    for (; index < segment->event_count; index++) {
        if (segment->events[index].kind == EVENT_TRAILER) {
            return at;
        }
        at += segment->events[index].plain;
    }
    return SIZE_MAX;
}

static int encode_events(recipe_state *state, const deflate_segment *segment,
                         const uint8_t *header, size_t header_size) {
    const deflate_token *tokens = segment->tokens;
    for (size_t i = 0; i < segment->event_count; i++) {
        const deflate_event *event = &segment->events[i];
        code_bit(state, &state->code.bits.more, 1);
        if (event->kind == EVENT_HEADER) {
            encode_header(state, segment, event, header, header_size);
            begin_member(state, segment->end, find_member_end(segment, i, state->at));
            model_enter_member(state, segment->plain_size);
        } else if (event->kind == EVENT_TRAILER) {
            uint8_t trailer[PARSE_TRAILER];
            memcpy(trailer, segment->data + (event->bit >> 3), PARSE_TRAILER);
            code_padding(state, 7, event->padding);
            code_trailer(state, trailer);
        } else {
            if (encode_block(state, segment, event, tokens)) {
                return -1;
            }
            tokens += event->tokens;
        }
    }
    code_bit(state, &state->code.bits.more, 0);
    return 0;
}

static int encode_segment(recipe_state *state, const deflate_segment *segment,
                          const model_choice *choice, uint64_t position, unsigned begins,
                          const uint8_t *header, size_t header_size) {
    range_encoder_init(&state->code.coder);
    model_text text = {segment->plain, segment->history, segment->plain_size, position};
    if (state_init(state, choice, segment->plain, segment->history, segment->end)) {
        return -1;
    }
    code_bit(state, &state->code.bits.state[0], begins & GZIP_AT_HEADER);
    code_bit(state, &state->code.bits.state[1], !!(begins & GZIP_AFTER_LITERAL));
    state->member_end = SIZE_MAX;
    if (!(begins & GZIP_AT_HEADER)) {
        state->member_end = code_member_end(state, segment->end,
                                            find_member_end(segment, 0, state->at));
    }
    if (begin_model(state, choice, &text, !!(begins & GZIP_AFTER_LITERAL)) ||
        encode_events(state, segment, header, header_size)) {
        return -1;
    }
    range_finish(&state->code.coder);
    return state->code.coder.failed ? -1 : 0;
}

static unsigned next_state(const deflate_segment *segment) {
    if (segment->at_header) {
        return GZIP_AT_HEADER;
    }
    const deflate_event *last = segment->event_count ? &segment->events[segment->event_count - 1] : NULL;
    int is_literal = last && last->kind == EVENT_BLOCK && last->tokens &&
                     !(segment->tokens[segment->token_count - 1] & DEFLATE_MATCH);
    return is_literal ? GZIP_AFTER_LITERAL : 0;
}

static int is_unsure(const recipe_state *state) {
    return state->model && model_is_unsure(state->model);
}

int gzip_recipe_encode(const deflate_segment *segment, const model_choice *choice,
                       uint64_t *position, unsigned *begins, const uint8_t *header,
                       size_t header_size, uint8_t **recipe, size_t *recipe_size) {
    recipe_state *state = calloc(1, sizeof *state);
    if (!state) {
        return -1;
    }
    int failed = encode_segment(state, segment, choice, *position, *begins, header, header_size);
    if (is_unsure(state)) {
        free(state->code.coder.bytes);
        state_free(state);
        *state = (recipe_state){.is_counting = 1};
        failed = encode_segment(state, segment, choice, *position, *begins, header, header_size);
    }
    uint64_t before = state->member == SIZE_MAX ? *position : 0;
    size_t from = state->member == SIZE_MAX ? segment->history : state->member;
    if (failed) {
        free(state->code.coder.bytes);
    } else {
        *recipe = state->code.coder.bytes;
        *recipe_size = state->code.coder.size;
        *position = segment->at_header ? 0 : before + (segment->end - from);
        *begins = next_state(segment);
    }
    state_free(state);
    free(state);
    return failed;
}

/* ---- Join ---- */

typedef struct {
    recipe_state state;
    gzip_join *job;
    bit_writer out;
    deflate_token *tokens;
    size_t room;
} join_state;

static int reserve(join_state *join, size_t bytes) {
    if (join->out.size > (size_t)(join->job->bit_size >> 3) + 1) {
        return GZIP_JOIN_BAD; /* longer than it can be */
    }
    return bit_writer_reserve(&join->out, bytes) ? GZIP_JOIN_NO_MEMORY : 0;
}

static int join_stored(join_state *join) {
    recipe_state *state = &join->state;
    size_t size = code_number(state, &state->code.numbers.stored, 0);
    size_t end = state->end < state->member_end ? state->end : state->member_end;
    if (size > 0xffff || size > end - state->at) {
        return GZIP_JOIN_BAD;
    }
    int failed = reserve(join, size + 8);
    if (failed) {
        return failed;
    }
    unsigned padding = -join->out.count & 7;
    bit_writer_put(&join->out, code_padding(state, padding, 0), padding);
    bit_writer_put(&join->out, size | (~size & 0xffff) << 16, 32);
    memcpy(join->out.bytes + join->out.size, state->data + state->at, size);
    join->out.size += size;
    state->at += size;
    model_pass_over(state->model);
    return 0;
}

static int make_token_room(join_state *join, size_t count) {
    if (count > join->room || !join->tokens) {
        size_t wanted = count > (1 << 16) ? count : 1 << 16, bytes;
        scratch_give(join->tokens);
        join->tokens = scratch_take(wanted * sizeof(deflate_token), &bytes);
        join->room = join->tokens ? bytes / sizeof(deflate_token) : 0;
    }
    return join->tokens ? 0 : GZIP_JOIN_NO_MEMORY;
}

/* The tokens of a block; returns how many, or what is wrong. */
static int64_t join_tokens(join_state *join) {
    recipe_state *state = &join->state;
    recipe_coder *code = &state->code;
    size_t end = state->end < state->member_end ? state->end : state->member_end;
    size_t stop = end, count = state->usual;
    unsigned is_usual = code_bit(state, &code->bits.usual_count, 0);
    if (is_usual) {
        stop = usual_end(state);
    } else {
        count = code_number(state, &code->numbers.count, 0);
        learn_usual(state, count);
        if (count > end - state->at) {
            return GZIP_JOIN_BAD;
        }
    }
    size_t most = count < stop - state->at ? count : stop - state->at, done = 0;
    int failed = make_token_room(join, most);
    if (failed) {
        return failed;
    }
    for (uint32_t misses = code_number(state, &code->numbers.misses, 0);; misses--) {
        size_t run = misses ? code_number(state, &code->numbers.run, 0) : most - done;
        run = run < most - done ? run : most - done;
        size_t made = model_produce(state->model, &state->at, join->tokens + done, run, stop);
        done += made;
        if (!misses) {
            break;
        }
        if (made < run || done >= most || state->at >= stop) {
            return GZIP_JOIN_BAD;
        }
        deflate_token predicted = model_predict(state->model, state->at);
        deflate_token actual =
            code_correction(state, predicted, predicted, state->data[state->at]);
        if (deflate_extent(actual) > stop - state->at) {
            return GZIP_JOIN_BAD;
        }
        model_correct(state->model, state->at, actual);
        join->tokens[done++] = actual;
        state->at += deflate_extent(actual);
    }
    int is_whole = is_usual ? state->at == stop || done == count : done == count;
    return is_whole ? (int64_t)done : GZIP_JOIN_BAD;
}

static int join_header_bits(join_state *join, code_lengths *lengths) {
    recipe_state *state = &join->state;
    uint8_t bytes[HEADER_BYTES + 8] = {0}, all[DEFLATE_LITERALS + DEFLATE_DISTANCES];
    uint32_t bits = code_number(state, &state->code.numbers.header_bits, 0);
    uint64_t at = 0;
    if (bits > HEADER_BYTES * 8) {
        return GZIP_JOIN_BAD;
    }
    for (uint32_t i = 0; i < bits; i += 8) {
        unsigned count = bits - i < 8 ? bits - i : 8;
        bytes[i >> 3] = (uint8_t)range_raw(&state->code.coder, count, 0);
        bit_writer_put(&join->out, bytes[i >> 3], count);
    }
    if (deflate_read_lengths(bytes, sizeof bytes, &at, all, &lengths->literals,
                             &lengths->distances)) {
        return GZIP_JOIN_BAD;
    }
    memcpy(lengths->literal, all, lengths->literals);
    memcpy(lengths->distance, all + lengths->literals, lengths->distances);
    return 0;
}

static int join_block_header(join_state *join, size_t count, code_lengths *lengths) {
    recipe_state *state = &join->state;
    recipe_coder *code = &state->code;
    huffman_lengths(state->space, state->style, join->tokens, count, &state->lengths);
    *lengths = state->lengths;
    if (code_bit(state, &code->bits.other_header, 0)) {
        if (code_bit(state, &code->bits.other_form, 0)) {
            return join_header_bits(join, lengths);
        }
        code_code_lengths(state, &state->lengths, lengths);
    }
    deflate_write_header(&join->out, state->space, state->style, lengths);
    return 0;
}

static int join_block(join_state *join, unsigned *is_final) {
    recipe_state *state = &join->state;
    recipe_coder *code = &state->code;
    int failed = reserve(join, HEADER_BYTES + 8);
    if (failed) {
        return failed;
    }
    *is_final = code_bit(state, &code->bits.final, 0);
    unsigned type = code_bit(state, &code->bits.dynamic, 0) ? DEFLATE_DYNAMIC
                    : code_bit(state, &code->bits.fixed, 0) ? DEFLATE_FIXED
                                                       : DEFLATE_STORED;
    bit_writer_put(&join->out, *is_final | type << 1, 3);
    if (type == DEFLATE_STORED) {
        return join_stored(join);
    }
    int64_t count = join_tokens(join);
    if (count < 0) {
        return (int)count;
    }
    code_lengths lengths = {.literals = DEFLATE_LITERALS, .distances = DEFLATE_DISTANCES};
    if (type == DEFLATE_DYNAMIC) {
        failed = join_block_header(join, (size_t)count, &lengths);
    } else {
        uint8_t fixed[DEFLATE_LITERALS + DEFLATE_DISTANCES];
        deflate_fixed_lengths(fixed);
        memcpy(lengths.literal, fixed, DEFLATE_LITERALS);
        memcpy(lengths.distance, fixed + DEFLATE_LITERALS, DEFLATE_DISTANCES);
    }
    if (!failed) {
        deflate_write_tokens(&join->out, join->tokens, (size_t)count, &lengths);
        failed = join->out.failed ? GZIP_JOIN_NO_MEMORY : 0;
    }
    return failed;
}

static int join_header(join_state *join) {
    recipe_state *state = &join->state;
    size_t size = join->job->header_size;
    int failed = reserve(join, size > PARSE_MAX_HEADER ? size : PARSE_MAX_HEADER);
    if (failed || join->out.count) {
        return failed ? failed : GZIP_JOIN_BAD;
    }
    if (code_bit(state, &state->code.bits.same_header, 0)) {
        if (size) {
            memcpy(join->out.bytes + join->out.size, join->job->header, size);
        }
    } else {
        size = code_number(state, &state->code.numbers.header_size, 0);
        if (size > PARSE_MAX_HEADER) {
            return GZIP_JOIN_BAD;
        }
        for (size_t i = 0; i < size; i++) {
            join->out.bytes[join->out.size + i] = (uint8_t)range_raw(&state->code.coder, 8, 0);
        }
    }
    join->out.size += size;
    begin_member(state, state->end, SIZE_MAX);
    if (state->member_end != SIZE_MAX && state->member_end > state->end) {
        return GZIP_JOIN_BAD;
    }
    model_enter_member(state, join->job->text.size);
    return 0;
}

static int join_trailer(join_state *join) {
    recipe_state *state = &join->state;
    uint8_t trailer[PARSE_TRAILER] = {0};
    int failed = reserve(join, PARSE_TRAILER + 8);
    if (failed) {
        return failed;
    }
    uint8_t padding = code_padding(state, 7, 0);
    bit_writer_put(&join->out, padding, -join->out.count & 7);
    code_trailer(state, trailer);
    memcpy(join->out.bytes + join->out.size, trailer, PARSE_TRAILER);
    join->out.size += PARSE_TRAILER;
    state->member_end = SIZE_MAX;
    return 0;
}

static int join_events(join_state *join, unsigned at_header) {
    recipe_state *state = &join->state;
    unsigned is_final = 0;
    while (code_bit(state, &state->code.bits.more, 0)) {
        int failed;
        if (is_final) {
            failed = join_trailer(join);
            at_header = 1;
            is_final = 0;
        } else if (at_header) {
            failed = join_header(join);
            at_header = 0;
        } else {
            failed = join_block(join, &is_final);
        }
        if (failed) {
            return failed;
        }
    }
    uint64_t bits = (uint64_t)join->out.size * 8 + join->out.count - join->job->first_bit;
    return state->at == state->end && bits == join->job->bit_size ? 0 : GZIP_JOIN_BAD;
}

static int join_segment(join_state *join) {
    gzip_join *job = join->job;
    recipe_state *state = &join->state;
    range_decoder_init(&state->code.coder, job->recipe, job->recipe_size);
    if (state_init(state, &job->choice, job->text.data, job->text.start, job->end) ||
        bit_writer_reserve(&join->out, 16)) {
        return GZIP_JOIN_NO_MEMORY;
    }
    join->out.count = job->first_bit;
    unsigned at_header = code_bit(state, &state->code.bits.state[0], 0);
    unsigned after_literal = code_bit(state, &state->code.bits.state[1], 0);
    state->member_end = SIZE_MAX;
    if (!at_header) {
        state->member_end = code_member_end(state, state->end, SIZE_MAX);
        if (state->member_end != SIZE_MAX && state->member_end > state->end) {
            return GZIP_JOIN_BAD;
        }
    }
    if (begin_model(state, &job->choice, &job->text, (int)after_literal)) {
        return GZIP_JOIN_NO_MEMORY;
    }
    return join_events(join, at_header);
}

static void join_free(join_state *join) {
    free(join->out.bytes);
    scratch_give(join->tokens);
    state_free(&join->state);
}

int gzip_recipe_join(gzip_join *job) {
    join_state *join = calloc(1, sizeof *join);
    if (!join) {
        return GZIP_JOIN_NO_MEMORY;
    }
    join->job = job;
    int failed = join_segment(join);
    if (is_unsure(&join->state)) {
        join_free(join);
        *join = (join_state){.job = job, .state = {.is_counting = 1}};
        failed = join_segment(join);
    }
    if (!failed && join->out.count) { /* its last byte, which the next segment goes on with */
        join->out.bytes[join->out.size++] = (uint8_t)join->out.bits;
    }
    if (!failed) {
        job->bytes = join->out.bytes;
        job->size = join->out.size;
        join->out.bytes = NULL;
    }
    join_free(join);
    free(join);
    return failed;
}
