/* A recipe and plain bytes to a stretch of gzip: gzip_recipe.h. */
#include "gzip_recipe.h"

#include <stdlib.h>
#include <string.h>

#include "gzip_state.h"
#include "scratch.h"

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
    bit_writer_put(&join->out, recipe_code_padding(state, padding, 0), padding);
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
        stop = recipe_usual_end(state);
    } else {
        count = code_number(state, &code->numbers.count, 0);
        recipe_learn_usual(state, count);
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
            recipe_code_correction(state, predicted, predicted, state->data[state->at]);
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
        recipe_code_lengths(state, &state->lengths, lengths);
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
    recipe_begin_member(state, state->end, SIZE_MAX);
    if (state->member_end != SIZE_MAX && state->member_end > state->end) {
        return GZIP_JOIN_BAD;
    }
    recipe_enter_member(state, join->job->text.size);
    return 0;
}

static int join_trailer(join_state *join) {
    recipe_state *state = &join->state;
    uint8_t trailer[PARSE_TRAILER] = {0};
    int failed = reserve(join, PARSE_TRAILER + 8);
    if (failed) {
        return failed;
    }
    uint8_t padding = recipe_code_padding(state, 7, 0);
    bit_writer_put(&join->out, padding, -join->out.count & 7);
    recipe_code_trailer(state, trailer);
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
    if (recipe_begin(state, &job->choice, job->text.data, job->text.start, job->end) ||
        bit_writer_reserve(&join->out, 16)) {
        return GZIP_JOIN_NO_MEMORY;
    }
    join->out.count = job->first_bit;
    unsigned at_header = code_bit(state, &state->code.bits.state[0], 0);
    unsigned after_literal = code_bit(state, &state->code.bits.state[1], 0);
    state->member_end = SIZE_MAX;
    if (!at_header) {
        state->member_end = recipe_code_member_end(state, state->end, SIZE_MAX);
        if (state->member_end != SIZE_MAX && state->member_end > state->end) {
            return GZIP_JOIN_BAD;
        }
    }
    if (recipe_begin_model(state, &job->choice, &job->text, (int)after_literal)) {
        return GZIP_JOIN_NO_MEMORY;
    }
    return join_events(join, at_header);
}

static void join_free(join_state *join) {
    free(join->out.bytes);
    scratch_give(join->tokens);
    recipe_free(&join->state);
}

int gzip_recipe_join(gzip_join *job) {
    join_state *join = calloc(1, sizeof *join);
    if (!join) {
        return GZIP_JOIN_NO_MEMORY;
    }
    join->job = job;
    int failed = join_segment(join);
    if (recipe_is_unsure(&join->state)) {
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
