/* Just enough of JSON to look into results. A value is the address where it begins in the text; NULL is none. */
#ifndef TIDEMILL_TESTS_JSON_H
#define TIDEMILL_TESTS_JSON_H

#include "check.h"

static inline const char *json_space(const char *at) { return at + strspn(at, " \t\r\n"); }

/* After the string at `at`; NULL if it does not end. */
static inline const char *json_after_string(const char *at) {
    for (at++; *at != '"'; at++) {
        if (*at == '\\') {
            at++;
        }
        if (*at == '\0') {
            return NULL;
        }
    }
    return at + 1;
}

/* After the value at `at`; NULL if it is none. */
static inline const char *json_after(const char *at) {
    long depth = 0;
    at = json_space(at);
    do {
        if (*at == '\0') {
            return NULL;
        } else if (*at == '"') {
            at = json_after_string(at);
            if (at == NULL) {
                return NULL;
            }
        } else if (*at == '{' || *at == '[') {
            depth++;
            at++;
        } else if (*at == '}' || *at == ']') {
            depth--;
            at++;
        } else if (depth > 0) {
            at++;
        } else {
            size_t bytes = strcspn(at, ",]}: \t\r\n");
            return bytes == 0 ? NULL : at + bytes;
        }
    } while (depth > 0);
    return depth == 0 ? at : NULL;
}

/* The value of `key` of an object. Keys with escapes are not found. */
static inline const char *json_member(const char *object, const char *key) {
    size_t bytes = strlen(key);
    const char *at = object ? json_space(object) : NULL;
    if (at == NULL || *at != '{') {
        return NULL;
    }
    at = json_space(at + 1);
    while (*at == '"') {
        int found = strncmp(at + 1, key, bytes) == 0 && at[1 + bytes] == '"';
        at = json_after_string(at);
        at = at ? json_space(at) : NULL;
        if (at == NULL || *at != ':') {
            return NULL;
        }
        at = json_space(at + 1);
        if (found) {
            return at;
        }
        at = json_after(at);
        if (at == NULL) {
            return NULL;
        }
        at = json_space(at);
        at = *at == ',' ? json_space(at + 1) : at;
    }
    return NULL;
}

/* The value at `index` of an array. */
static inline const char *json_item(const char *array, size_t index) {
    const char *at = array ? json_space(array) : NULL;
    if (at == NULL || *at != '[') {
        return NULL;
    }
    at = json_space(at + 1);
    for (;;) {
        if (*at == ']' || *at == '\0') {
            return NULL;
        }
        if (index == 0) {
            return at;
        }
        index--;
        at = json_after(at);
        at = at ? json_space(at) : NULL;
        if (at == NULL || *at != ',') {
            return NULL;
        }
        at = json_space(at + 1);
    }
}

static inline size_t json_count(const char *array) {
    size_t count = 0;
    while (json_item(array, count) != NULL) {
        count++;
    }
    return count;
}

/* Whether `value` is written as `literal`. */
static inline int json_is(const char *value, const char *literal) {
    const char *end = value ? json_after(value) : NULL;
    return end != NULL && (size_t)(end - value) == strlen(literal) && strncmp(value, literal, strlen(literal)) == 0;
}

/* A number; -1 if it is none. Nothing that is looked up here is below 0. */
static inline double json_number(const char *value) {
    char *end = NULL;
    double number = value ? strtod(value, &end) : 0;
    return end == NULL || end == value ? -1 : number;
}

static inline void json_push_code(char **out, unsigned long code) {
    if (code < 0x80) {
        *(*out)++ = (char)code;
    } else if (code < 0x800) {
        *(*out)++ = (char)(0xc0 | code >> 6);
        *(*out)++ = (char)(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        *(*out)++ = (char)(0xe0 | code >> 12);
        *(*out)++ = (char)(0x80 | (code >> 6 & 0x3f));
        *(*out)++ = (char)(0x80 | (code & 0x3f));
    } else {
        *(*out)++ = (char)(0xf0 | code >> 18);
        *(*out)++ = (char)(0x80 | (code >> 12 & 0x3f));
        *(*out)++ = (char)(0x80 | (code >> 6 & 0x3f));
        *(*out)++ = (char)(0x80 | (code & 0x3f));
    }
}

static inline unsigned long json_hex(const char *at) {
    char digits[5] = {0, 0, 0, 0, 0};
    strncpy(digits, at, 4);
    return strtoul(digits, NULL, 16);
}

/* A string's text, as long as there is no NUL in it; NULL if the value is none. The caller frees it. */
static inline char *json_text(const char *value) {
    const char *end = value && *value == '"' ? json_after_string(value) : NULL;
    const char *at;
    char *text, *out;
    if (end == NULL) {
        return NULL;
    }
    text = out = (char *)malloc((size_t)(end - value));
    CHECK(text != NULL);
    for (at = value + 1; at < end - 1; at++) {
        static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
        const char *found;
        if (*at != '\\') {
            *out++ = *at;
        } else if (*++at == 'u') {
            unsigned long code = json_hex(at + 1);
            at += 4;
            if (code >= 0xd800 && code < 0xdc00 && at[1] == '\\' && at[2] == 'u') {
                code = 0x10000 + ((code - 0xd800) << 10) + (json_hex(at + 3) - 0xdc00);
                at += 6;
            }
            json_push_code(&out, code);
        } else {
            found = strchr(from, *at);
            *out++ = found ? to[found - from] : *at;
        }
    }
    *out = '\0';
    return text;
}

/* An array of ids; how many there are. */
static inline size_t json_ids(const char *array, uint32_t *ids, size_t capacity) {
    size_t count = json_count(array), at;
    CHECK(count <= capacity);
    for (at = 0; at < count; at++) {
        ids[at] = (uint32_t)json_number(json_item(array, at));
    }
    return count;
}

/* The same as a text. The caller frees it. */
static inline char *json_of_ids(const uint32_t *ids, size_t count) {
    char *text = (char *)malloc(count * 11 + 3), *at = text;
    size_t index;
    CHECK(text != NULL);
    *at++ = '[';
    for (index = 0; index < count; index++) {
        at += sprintf(at, "%s%lu", index ? "," : "", (unsigned long)ids[index]);
    }
    strcpy(at, "]");
    return text;
}

#endif
