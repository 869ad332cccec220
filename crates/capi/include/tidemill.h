/*
 * Tidemill's C API, C99 and C++11. This file is generated: `cargo xtask header` makes it of crates/capi/src.
 *
 * Ownership. Every `char **` result is the caller's, freed with tidemill_string_free. `error` may be NULL; it is set to NULL on
 * success and to a message on failure. Other outputs are written on success only, but handles are NULL on failure.
 * Buffers are the caller's: counts always say what is needed; a buffer that is too small is TIDEMILL_TOO_SMALL and untouched.
 * `progress`, `on`, `user`, `cancel`, `reused`, `best`, `error` and the argument of a _free may be NULL; any other NULL is
 * TIDEMILL_INVALID_REQUEST, unless a count of 0 says that nothing is there.
 *
 * Texts are UTF-8. Options and requests are JSON objects: a key that nobody knows, a key given twice, a wrong type and a value out
 * of range are TIDEMILL_INVALID_REQUEST with a message that names it. docs/c-api.md has the keys.
 *
 * Threads. Functions of a model: any threads at once. A session and a sampler take one call at a time, from any thread; a second
 * one, also from within a callback, gets TIDEMILL_BUSY and changes nothing. So does whatever computes, from within a callback that
 * tells of a computation (`progress`, TIDEMILL_PROMPT): the model is at work in this thread. A forked process cannot use handles of its parent: it
 * gets TIDEMILL_INVALID_REQUEST.
 *
 * A fault of the library is TIDEMILL_INTERNAL; the handle answers so from then on. "Since" is the ABI version that has a function
 * first.
 */

#ifndef TIDEMILL_H
#define TIDEMILL_H

#include <stddef.h>
#include <stdint.h>

// The ABI that this header describes. Within it functions, statuses, event kinds, flags and JSON keys are only added.
#define TIDEMILL_ABI_VERSION 1

// Done.
#define TIDEMILL_OK 0

// A fault of the library. The handle it happened on answers the same from then on; others live.
#define TIDEMILL_INTERNAL 1

// A wrong argument, option or request.
#define TIDEMILL_INVALID_REQUEST 2

// No such file.
#define TIDEMILL_NOT_FOUND 3

// A damaged file, or numbers that are none.
#define TIDEMILL_CORRUPT 4

// A file or option that this version cannot take.
#define TIDEMILL_UNSUPPORTED 5

// The drive or the file system failed.
#define TIDEMILL_IO 6

// Not enough memory; the message has what is needed.
#define TIDEMILL_MEMORY 7

// The context is full, or a prompt is longer than it.
#define TIDEMILL_CONTEXT_FULL 8

// The GPU failed, or there is none.
#define TIDEMILL_DEVICE 9

// Another call runs on this session or sampler; nothing has changed.
#define TIDEMILL_BUSY 10

// The buffer is too small; the count says what is needed, and nothing was written.
#define TIDEMILL_TOO_SMALL 11

// A callback or a cancel token stopped the call.
#define TIDEMILL_CANCELLED 130

// `tidemill_tokenize`: the text is a document, so the model's beginning comes first.
#define TIDEMILL_TOKENIZE_DOCUMENT 1

// `tidemill_tokenize`: control tokens that are written in the text are obeyed; else they are text.
#define TIDEMILL_TOKENIZE_SPECIALS 2

// `tidemill_detokenize`: control tokens are shown.
#define TIDEMILL_DETOKENIZE_SPECIALS 1

// A piece of the answer's text, UTF-8. All pieces joined are the result's `text`, but for those before
// `TIDEMILL_TEXT_WAS_THINKING`, which few models make.
#define TIDEMILL_TEXT 1

// A piece of the thoughts before it.
#define TIDEMILL_THINKING 2

// A whole call, as JSON: `{"id", "type": "function", "function": {"name", "arguments"}}`.
#define TIDEMILL_TOOL_CALL 3

// What looked like a call and is none, as JSON: `{"reason"}`.
#define TIDEMILL_MALFORMED_TOOL_CALL 4

// All text so far was a thought, and is no part of the result's `text`; without data.
#define TIDEMILL_TEXT_WAS_THINKING 6

// How far the prompt is, as JSON: `{"done_tokens", "total_tokens"}`.
#define TIDEMILL_PROMPT 5

// Stops calls from another thread, or from a signal handler. It stays set.
typedef struct tidemill_cancel tidemill_cancel;

// A model that is open. Its sessions and samplers keep what they need of it.
typedef struct tidemill_model tidemill_model;

// How tokens are chosen, and where in its random numbers that is. From any thread, one call at a time.
typedef struct tidemill_sampler tidemill_sampler;

// A sequence of tokens over a model. From any thread, one call at a time.
typedef struct tidemill_session tidemill_session;

// How a call ended: 0 to 9 and 130 are the command line's exit codes. Unknown ones mean failure.
typedef int32_t tidemill_status;

// Told how far a call is: bytes while a model opens, tokens elsewhere. Not 0 stops the call. It runs on the calling thread,
// and must neither throw nor `longjmp`.
typedef int32_t (*tidemill_progress)(void *user, double done, double total);

// Told what happens while an answer is made; ignore kinds that you do not know. `data` has `bytes` bytes and lives until the
// function returns; no NUL follows. Not 0 stops the answer. It runs on the calling thread, and must neither throw nor `longjmp`.
typedef int32_t (*tidemill_on_event)(void *user, int32_t kind, const char *data, size_t bytes);

// Told how the request `index` ended. `result_json` is the object of `tidemill_generate`, or `{"error": {"code", "message"}}`, and
// lives until the function returns. Not 0 stops the batch. It runs on the calling thread, and must neither throw nor `longjmp`.
typedef int32_t (*tidemill_on_result)(void *user, size_t index, tidemill_status status, const char *result_json);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The ABI of the library that was loaded: a program compares it with the header's `TIDEMILL_ABI_VERSION`.
uint32_t tidemill_abi_version(void);

// The version of the library that was loaded, with its commit, target and features, such as
// `0.2.0 (9fceb02d0ae5, x86_64-unknown-linux-gnu, gpu)`. It lives as long as the program.
const char *tidemill_version(void);

// The name of a status, such as `CONTEXT_FULL`; `UNKNOWN` for one that this version does not have. Never NULL.
const char *tidemill_status_name(tidemill_status status);

// Frees a text that this library made. NULL is nothing.
void tidemill_string_free(char *text);

// A new token that is not set.
tidemill_cancel *tidemill_cancel_new(void);

// Stops the calls that have this token, and those that get it later. From any thread, also from a signal handler.
void tidemill_cancel_set(tidemill_cancel *cancel);

// Frees a token, also while a call that has it still runs.
void tidemill_cancel_free(tidemill_cancel *cancel);

// How the memory of a model would be divided. Only headers are read. `*plan_json` is an object with `fits`, `floor_bytes` (the
// least that runs), and where it fits `budget_bytes`, `total_bytes` and the parts of these. A budget below the floor is no
// error: then `fits` is false.
//
// Errors: `INVALID_REQUEST`, `NOT_FOUND`, `CORRUPT`, `UNSUPPORTED`, `IO`. Since 1.
tidemill_status tidemill_plan(const char *model, const char *options_json, char **plan_json, char **error);

// Opens the model at the path `model`: a `.gguf` file or a directory of safetensors files. Options are those of the command
// line, as JSON; NULL is `{}`. `progress` counts bytes.
//
// `*out` is the caller's, freed with `tidemill_model_free`; NULL on failure. Any thread.
// Errors: all but `TOO_SMALL`, `BUSY`, `CONTEXT_FULL`. Since 1.
tidemill_status tidemill_model_open(const char *model,
                                    const char *options_json,
                                    tidemill_progress progress,
                                    void *user,
                                    const tidemill_cancel *cancel,
                                    tidemill_model **out,
                                    char **error);

// Frees a model. Its sessions and samplers go on; its threads end with the last of them. NULL is nothing.
void tidemill_model_free(tidemill_model *model);

// What is known of a model: an object with `name`, `architecture`, `layers`, `vocab_size`, `context`, `end_tokens`,
// `device`, `sessions`, `chunk_tokens`, `plan`, `experts_per_token`, `lossy`, `notes`, `fingerprint`, and `drive` where the drive
// was probed: handed back in `options_json` next time, it spares the probe. Any thread. Since 1.
tidemill_status tidemill_model_info(const tidemill_model *model, char **json, char **error);

// What a model has read since it was opened, or since `reset` was not 0: an object with `experts_wanted`, `experts_in_memory`,
// `read_bytes`, `read_s`, `wait_s`, `slots`, `rss_peak_bytes`; counts are null for a model without experts. Any thread. Since 1.
tidemill_status tidemill_model_stats(const tidemill_model *model, int32_t reset, char **json, char **error);

// How often each expert was chosen: `[layers, experts]`, row by row, into `uses`, which has room for `capacity` values. `*layers`
// and `*experts` always get the sizes; NULL with a capacity of 0 only asks for them. Any thread.
// Errors: `INVALID_REQUEST`, `TOO_SMALL`. Since 1.
tidemill_status tidemill_model_heat(const tidemill_model *model,
                                    uint64_t *uses,
                                    size_t capacity,
                                    size_t *layers,
                                    size_t *experts,
                                    char **error);

// The tokens of a text of `bytes` bytes, into `tokens`, which has room for `capacity`. `*count` always gets how many there are;
// NULL with a capacity of 0 only counts. Any thread. Errors: `INVALID_REQUEST`, `TOO_SMALL`. Since 1.
tidemill_status tidemill_tokenize(const tidemill_model *model,
                                  const char *text,
                                  size_t bytes,
                                  uint32_t flags,
                                  uint32_t *tokens,
                                  size_t capacity,
                                  size_t *count,
                                  char **error);

// The text of tokens, into `text`, which has room for `capacity` bytes; no NUL follows. `*bytes` always gets how many there are;
// NULL with a capacity of 0 only counts. Tokens that end in the midst of a character end in U+FFFD. Any thread.
// Errors: `INVALID_REQUEST` for an id outside the vocabulary, `TOO_SMALL`. Since 1.
tidemill_status tidemill_detokenize(const tidemill_model *model,
                                    const uint32_t *tokens,
                                    size_t count,
                                    uint32_t flags,
                                    char *text,
                                    size_t capacity,
                                    size_t *bytes,
                                    char **error);

// The tokens of the prompt of a request with `messages`, as `tidemill_generate` would compute it. Buffers as
// `tidemill_tokenize`. Any thread. Errors: `INVALID_REQUEST`, `CONTEXT_FULL`, `TOO_SMALL`. Since 1.
tidemill_status tidemill_chat_prompt(const tidemill_model *model,
                                     const char *request_json,
                                     uint32_t *tokens,
                                     size_t capacity,
                                     size_t *count,
                                     char **error);

// A new, empty session. `*out` is the caller's, freed with `tidemill_session_free`; NULL on failure.
// Errors: `MEMORY` where as many live as the model was opened for (`sessions`), `DEVICE`. Any thread. Since 1.
tidemill_status tidemill_session_new(tidemill_model *model, tidemill_session **out, char **error);

// Frees a session. NULL is nothing.
void tidemill_session_free(tidemill_session *session);

// How many tokens a session has; 0 for NULL, and while another call runs on it. Since 1.
size_t tidemill_session_length(const tidemill_session *session);

// The tokens of a session. Buffers as `tidemill_tokenize`. Errors: `INVALID_REQUEST`, `BUSY`, `TOO_SMALL`. Since 1.
tidemill_status tidemill_session_tokens(const tidemill_session *session,
                                        uint32_t *tokens,
                                        size_t capacity,
                                        size_t *count,
                                        char **error);

// Makes `tokens` the sequence and computes only what differs from the tokens so far; none make it empty. `*reused`, where
// wanted, gets how many of them the session held. `progress` counts tokens. Stopped or failed, the session has what the two
// sequences share and the parts that were finished, so that the same call goes on from there.
// Errors: `INVALID_REQUEST`, `CONTEXT_FULL` (nothing has changed), `IO`, `DEVICE`, `MEMORY`, `BUSY`, `CANCELLED`. Since 1.
tidemill_status tidemill_session_sync(tidemill_session *session,
                                      const uint32_t *tokens,
                                      size_t count,
                                      tidemill_progress progress,
                                      void *user,
                                      const tidemill_cancel *cancel,
                                      size_t *reused,
                                      char **error);

// Computes `tokens` after those so far. Stopped or failed, the session is as before.
// Errors: as `tidemill_session_sync`, and `INVALID_REQUEST` for no tokens. Since 1.
tidemill_status tidemill_session_append(tidemill_session *session,
                                        const uint32_t *tokens,
                                        size_t count,
                                        tidemill_progress progress,
                                        void *user,
                                        const tidemill_cancel *cancel,
                                        char **error);

// As `tidemill_session_append`, and says how likely the tokens were: `logprobs`, with room for `count`, gets the natural
// log-probability of each after all before it, and `best`, NULL or with room for `count`, the likeliest token there. The first
// of an empty session has NaN and `UINT32_MAX`. Since 1.
tidemill_status tidemill_session_score(tidemill_session *session,
                                       const uint32_t *tokens,
                                       size_t count,
                                       float *logprobs,
                                       uint32_t *best,
                                       tidemill_progress progress,
                                       void *user,
                                       const tidemill_cancel *cancel,
                                       char **error);

// Goes back to the first `length` tokens. Errors: `INVALID_REQUEST` where there are fewer, `BUSY`, `DEVICE`. Since 1.
tidemill_status tidemill_session_truncate(tidemill_session *session, size_t length, char **error);

// The logits after the last token, `[vocab]`. They are computed again where they are not at hand, as after
// `tidemill_session_truncate` and `tidemill_session_load`. Buffers as `tidemill_tokenize`.
// Errors: `INVALID_REQUEST` for an empty session, `TOO_SMALL`, `BUSY`, `IO`, `DEVICE`, `MEMORY`. Since 1.
tidemill_status tidemill_session_logits(tidemill_session *session, float *logits, size_t capacity, size_t *count, char **error);

// Writes tokens and state to the file `path`, for `tidemill_session_load`; where that fails, an older file is untouched.
// Errors: `INVALID_REQUEST`, `NOT_FOUND`, `IO`, `DEVICE`, `BUSY`. Since 1.
tidemill_status tidemill_session_save(tidemill_session *session, const char *path, char **error);

// Replaces the sequence by a saved one. Where that fails the session is empty.
// Errors: `NOT_FOUND`, `IO`, `CORRUPT`, `INVALID_REQUEST` for a state of another model or one that is
// longer than the context, `BUSY`. Since 1.
tidemill_status tidemill_session_load(tidemill_session *session, const char *path, char **error);

// A new sampler. Options: `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `presence_penalty`, `frequency_penalty`,
// `logit_bias`, `seed`; NULL is `{}`. What is not given is as the model's makers recommend.
//
// `*out` is the caller's, freed with `tidemill_sampler_free`; NULL on failure. Errors: `INVALID_REQUEST`. Any thread. Since 1.
tidemill_status tidemill_sampler_new(const tidemill_model *model,
                                     const char *options_json,
                                     tidemill_sampler **out,
                                     char **error);

// Frees a sampler. NULL is nothing.
void tidemill_sampler_free(tidemill_sampler *sampler);

// Chooses the token that comes after those of `session`, and does not append it.
// Errors: `INVALID_REQUEST` for an empty session, `CORRUPT` for logits that are no numbers, `BUSY`, and those of
// `tidemill_session_logits`. Since 1.
tidemill_status tidemill_sampler_sample(tidemill_sampler *sampler, tidemill_session *session, uint32_t *token, char **error);

// Chooses a token by the caller's own logits, of which there is at least one; `history` is all that came before.
// Errors: `INVALID_REQUEST`, `CORRUPT` for NaN, `BUSY`. Since 1.
tidemill_status tidemill_sampler_sample_logits(tidemill_sampler *sampler,
                                               const float *logits,
                                               size_t count,
                                               const uint32_t *history,
                                               size_t history_count,
                                               uint32_t *token,
                                               char **error);

// Answers a request: one of `messages`, `prompt` (a text) and `tokens`, and how to answer it. Its prompt becomes the session's
// sequence, of which only what differs is computed; the answer is appended. `*result_json` gets the object that
// `tidemill run --json` prints, with `tokens` and with `ignored`: what of a tool's schema cannot be kept.
//
// Stopped by `on` or `cancel` it is `CANCELLED`, and the result is there all the same, with what was made; the session keeps it.
// Errors: `INVALID_REQUEST`, `CONTEXT_FULL`, `IO`, `DEVICE`, `MEMORY`, `BUSY`. Since 1.
tidemill_status tidemill_generate(tidemill_session *session,
                                  const char *request_json,
                                  tidemill_on_event on,
                                  void *user,
                                  const tidemill_cancel *cancel,
                                  char **result_json,
                                  char **error);

// Answers `count` requests, each as `tidemill_generate` would in a session of its own; as many at once as the model was opened
// for (`sessions`), without those that live. `on` is called once for each, in the order in which they end, never twice at the same
// time. A request that is wrong fails by itself. Stopped by `cancel`, those that have not ended are `CANCELLED`; stopped by
// `on`, nothing more is told of them. Any thread.
// Errors: `INVALID_REQUEST`, `MEMORY` where sessions have all places, `CANCELLED`. Since 1.
tidemill_status tidemill_batch(tidemill_model *model,
                               const char *const *requests_json,
                               size_t count,
                               tidemill_on_result on,
                               void *user,
                               const tidemill_cancel *cancel,
                               char **error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TIDEMILL_H */
