/* Checks of the C API's tests. A program says nothing and exits with 0, or names the check that failed. */
#ifndef TIDEMILL_TESTS_CHECK_H
#define TIDEMILL_TESTS_CHECK_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <dirent.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <tidemill.h>

#if defined(__GNUC__)
#define NEVER_RETURNS __attribute__((noreturn))
#else
#define NEVER_RETURNS
#endif

/* Ends the program at once: other threads may be in the middle of anything, and so may a forked child. */
NEVER_RETURNS static inline void check_failed(const char *file, int line, const char *what, const char *said) {
    fprintf(stderr, "%s:%d: %s%s%s\n", file, line, what, said[0] ? ": " : "", said);
    fflush(stderr);
    _Exit(1);
}

#define CHECK(what)                                                                                                  \
    do {                                                                                                             \
        if (!(what)) {                                                                                               \
            check_failed(__FILE__, __LINE__, #what, "");                                                             \
        }                                                                                                            \
    } while (0)

/* Where `error` points before a call, so that it shows whether the call sets it. */
static char check_unset[] = "(not set)";

/* Whether a call gave `want`, and an error that is NULL exactly where it succeeded and has `word` in it. */
static inline void check_gives(tidemill_status got, tidemill_status want, char **error, const char *word,
                               const char *file, int line, const char *call) {
    char said[512];
    const char *message = *error ? *error : "(null)";
    snprintf(said, sizeof said, "gave %d (%s), not %d, with error %s", (int)got, tidemill_status_name(got), (int)want,
             message);
    if (got != want || *error == check_unset || (*error == NULL) != (got == TIDEMILL_OK)) {
        check_failed(file, line, call, said);
    }
    if (word != NULL && strstr(message, word) == NULL) {
        snprintf(said, sizeof said, "error does not say \"%s\": %s", word, message);
        check_failed(file, line, call, said);
    }
    if (got != TIDEMILL_OK && message[0] == '\0') {
        check_failed(file, line, call, "an empty message");
    }
    tidemill_string_free(*error);
    *error = NULL;
}

/* A call with `&error` in it, the name that `error` has everywhere here. */
#define SAYS(want, word, call)                                                                                       \
    do {                                                                                                             \
        error = check_unset;                                                                                         \
        check_gives((call), (want), &error, (word), __FILE__, __LINE__, #call);                                      \
    } while (0)
#define GIVES(want, call) SAYS(want, NULL, call)
#define OK(call) SAYS(TIDEMILL_OK, NULL, call)
#define REFUSED(call) SAYS(TIDEMILL_INVALID_REQUEST, NULL, call)

/* A text as printf makes it. The caller frees it. */
static inline char *format(const char *form, ...) {
    va_list arguments;
    char *text;
    int bytes;
    va_start(arguments, form);
    bytes = vsnprintf(NULL, 0, form, arguments);
    va_end(arguments);
    CHECK(bytes >= 0);
    text = (char *)malloc((size_t)bytes + 1);
    CHECK(text != NULL);
    va_start(arguments, form);
    vsnprintf(text, (size_t)bytes + 1, form, arguments);
    va_end(arguments);
    return text;
}

/* In seconds, from any beginning. */
static inline double clock_s(void) {
    struct timespec now;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static inline void sleep_ms(long ms) {
    struct timespec time;
    time.tv_sec = ms / 1000;
    time.tv_nsec = ms % 1000 * 1000000;
    nanosleep(&time, NULL);
}

/* Entries of a folder; 0 where it cannot be read. */
static inline size_t entries(const char *folder) {
    size_t count = 0;
    DIR *open = opendir(folder);
    if (open == NULL) {
        return 0;
    }
    while (readdir(open) != NULL) {
        count++;
    }
    closedir(open);
    return count;
}

/* Threads of this process; 0 where the system does not tell. */
static inline size_t threads_now(void) {
    size_t found = entries("/proc/self/task");
    return found > 2 ? found - 2 : 0;
}

/* A joined thread may be listed a moment longer. */
static inline void check_threads_are(size_t before) {
    int patience;
    for (patience = 0; patience < 200 && threads_now() > before; patience++) {
        sleep_ms(10);
    }
    CHECK(threads_now() == before);
}

/* A file's bytes; NULL where there is none. The caller frees them. */
static inline char *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    char *data;
    long end;
    if (file == NULL) {
        return NULL;
    }
    CHECK(fseek(file, 0, SEEK_END) == 0);
    end = ftell(file);
    CHECK(end >= 0 && fseek(file, 0, SEEK_SET) == 0);
    data = (char *)malloc((size_t)end + 1);
    CHECK(data != NULL && fread(data, 1, (size_t)end, file) == (size_t)end);
    data[end] = '\0';
    fclose(file);
    *bytes = (size_t)end;
    return data;
}

static inline void write_file(const char *path, const char *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL);
    CHECK(bytes == 0 || fwrite(data, 1, bytes, file) == bytes);
    CHECK(fclose(file) == 0);
}

#endif
