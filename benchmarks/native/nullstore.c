/*
 * A fast stand-in for S3 on loopback: what a store costs when it costs almost nothing.
 *
 *     nullstore [--port N] [--keep] [--cert FILE --key FILE]
 *
 * Prints its port. Speaks enough of the protocol for registries and multipart uploads: PUT (with
 * If-None-Match: *, atomic), GET with Range, HEAD, DELETE, POST ?delete, copies, list-type=2 and 1,
 * and the whole of multipart. Any bucket exists. Nothing is authenticated.
 *
 * Objects of up to 1 MiB are kept, and their ETag is their md5. Of larger ones the bytes are taken
 * and dropped: size and a made-up ETag of 40 hex digits stay, and a GET of one answers 501. With
 * --keep everything is kept in memory and served. x-amz-checksum-* headers are echoed as sent: it
 * trusts the sender. Checksums and signatures of aws-chunked bodies are skipped, not checked.
 *
 * GET /__count answers the bytes of bodies received; POST /__clear forgets all objects.
 */
#define _GNU_SOURCE
#include "net.h"
#include <openssl/evp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#define SMALL (1 << 20)
#define BLOCK (256 << 10)
#define KEY_LIMIT 4096

/* -- what is stored ------------------------------------------------------------------------- */

struct bytes {
    atomic_int refs;
    char data[];
};

struct blob {
    size_t size;
    struct bytes *bytes; /* NULL where they were dropped */
    char etag[64];
    time_t modified;
};

struct object {
    char *key; /* /bucket/key */
    char *headers; /* x-amz-meta-* and Content-Type, as they were sent */
    struct blob blob;
};

struct part {
    int number;
    struct blob blob;
};

struct upload {
    char id[40];
    char *key, *headers;
    time_t started;
    struct part *parts; /* sorted by number */
    size_t count;
    struct upload *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct object **objects; /* sorted by key */
static size_t object_count, object_room;
static struct upload *uploads;
static atomic_ulong received, serial;
static bool keep_all;
static SSL_CTX *tls;

static void release(struct bytes *bytes) {
    if (bytes && atomic_fetch_sub(&bytes->refs, 1) == 1)
        free(bytes);
}

static struct bytes *hold(struct bytes *bytes) {
    if (bytes)
        atomic_fetch_add(&bytes->refs, 1);
    return bytes;
}

static struct bytes *new_bytes(size_t size) {
    struct bytes *bytes = malloc(sizeof *bytes + size + 1);
    if (!bytes)
        die("malloc");
    atomic_init(&bytes->refs, 1);
    return bytes;
}

static void set_etag(struct blob *blob) {
    if (blob->bytes && blob->size <= SMALL) {
        unsigned char md5[16];
        EVP_Digest(blob->bytes->data, blob->size, md5, NULL, EVP_md5(), NULL);
        for (int i = 0; i < 16; i++)
            sprintf(blob->etag + 2 * i, "%02x", md5[i]);
    } else {
        sprintf(blob->etag, "%040lx", atomic_fetch_add(&serial, 1) + 1);
    }
}

/* Where `key` stands or would stand. */
static size_t place(const char *key) {
    size_t low = 0, high = object_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (strcmp(objects[middle]->key, key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct object *find(const char *key) {
    size_t at = place(key);
    return at < object_count && !strcmp(objects[at]->key, key) ? objects[at] : NULL;
}

static void drop(const char *key) {
    size_t at = place(key);
    if (at == object_count || strcmp(objects[at]->key, key))
        return;
    struct object *gone = objects[at];
    memmove(objects + at, objects + at + 1, (--object_count - at) * sizeof *objects);
    release(gone->blob.bytes);
    free(gone->key);
    free(gone->headers);
    free(gone);
}

/* Under the lock, so that a create is one step. Takes over `blob`'s reference. */
static bool store(const char *key, struct blob blob, const char *headers, bool only_new) {
    if (only_new && find(key)) {
        release(blob.bytes);
        return false;
    }
    drop(key);
    if (object_count == object_room) {
        object_room = object_room ? 2 * object_room : 1024;
        objects = realloc(objects, object_room * sizeof *objects);
    }
    struct object *object = malloc(sizeof *object);
    *object = (struct object){strdup(key), strdup(headers ? headers : ""), blob};
    object->blob.modified = time(NULL);
    size_t at = place(key);
    memmove(objects + at + 1, objects + at, (object_count++ - at) * sizeof *objects);
    objects[at] = object;
    return true;
}

static struct upload *find_upload(const char *id) {
    struct upload *at = uploads;
    while (at && strcmp(at->id, id))
        at = at->next;
    return at;
}

static void end_upload(struct upload *gone) {
    struct upload **at = &uploads;
    while (*at != gone)
        at = &(*at)->next;
    *at = gone->next;
    for (size_t i = 0; i < gone->count; i++)
        release(gone->parts[i].blob.bytes);
    free(gone->parts);
    free(gone->key);
    free(gone->headers);
    free(gone);
}

static struct part *find_part(struct upload *upload, int number) {
    for (size_t i = 0; i < upload->count; i++)
        if (upload->parts[i].number == number)
            return &upload->parts[i];
    return NULL;
}

static void store_part(struct upload *upload, int number, struct blob blob) {
    struct part *old = find_part(upload, number);
    blob.modified = time(NULL);
    if (old) {
        release(old->blob.bytes);
        old->blob = blob;
        return;
    }
    upload->parts = realloc(upload->parts, (upload->count + 1) * sizeof *upload->parts);
    size_t at = upload->count++;
    for (; at && upload->parts[at - 1].number > number; at--)
        upload->parts[at] = upload->parts[at - 1];
    upload->parts[at] = (struct part){number, blob};
}

/* -- text ------------------------------------------------------------------------------------ */

struct text {
    char *at;
    size_t size, room;
};

__attribute__((format(printf, 2, 3))) static void say(struct text *text, const char *format, ...) {
    va_list list;
    va_start(list, format);
    size_t need = (size_t)vsnprintf(NULL, 0, format, list) + 1;
    va_end(list);
    if (text->size + need > text->room) {
        text->room = 2 * (text->size + need) + 1024;
        text->at = realloc(text->at, text->room);
    }
    va_start(list, format);
    text->size += (size_t)vsnprintf(text->at + text->size, need, format, list);
    va_end(list);
}

static void say_xml(struct text *text, const char *name, const char *value) {
    say(text, "<%s>", name);
    for (; *value; value++) {
        if (strchr("<>&\"'\r\n", *value))
            say(text, "&#%d;", (unsigned char)*value);
        else
            say(text, "%c", *value);
    }
    say(text, "</%s>", name);
}

static void say_time(struct text *text, time_t when) {
    char out[40];
    struct tm parts;
    strftime(out, sizeof out, "%Y-%m-%dT%H:%M:%S.000Z", gmtime_r(&when, &parts));
    say(text, "<LastModified>%s</LastModified>", out);
}

static void percent_decode(char *text, bool query) {
    char *to = text;
    for (; *text; text++) {
        unsigned value;
        if (*text == '%' && sscanf(text + 1, "%2x", &value) == 1) {
            *to++ = (char)value;
            text += 2;
        } else {
            *to++ = query && *text == '+' ? ' ' : *text;
        }
    }
    *to = 0;
}

static void xml_decode(char *text) {
    static const struct {
        const char *name, *value;
    } named[] = {{"&amp;", "&"}, {"&lt;", "<"}, {"&gt;", ">"}, {"&quot;", "\""}, {"&apos;", "'"}};
    char *to = text;
    while (*text) {
        int value, used = 0;
        if (*text != '&') {
            *to++ = *text++;
            continue;
        }
        if ((sscanf(text, "&#%d;%n", &value, &used), used) ||
            (sscanf(text, "&#x%x;%n", (unsigned *)&value, &used), used)) {
            *to++ = (char)value;
            text += used;
            continue;
        }
        size_t i = 0;
        while (i < 5 && strncmp(text, named[i].name, strlen(named[i].name)))
            i++;
        *to++ = i < 5 ? *named[i].value : '&';
        text += i < 5 ? strlen(named[i].name) : 1;
    }
    *to = 0;
}

/* The content of the next <name> after *at, decoded; *at goes behind it. NULL without one. */
static char *next_element(char **at, const char *name) {
    char open[40], close[40];
    sprintf(open, "<%s>", name);
    sprintf(close, "</%s>", name);
    char *start = strstr(*at, open);
    char *stop = start ? strstr(start, close) : NULL;
    if (!stop)
        return NULL;
    start += strlen(open);
    *at = stop + strlen(close);
    char *value = strndup(start, (size_t)(stop - start));
    xml_decode(value);
    return value;
}

/* -- one request ------------------------------------------------------------------------------ */

struct request {
    struct conn *c;
    char head[HEAD_LIMIT];
    char method[8], key[KEY_LIMIT], query[HEAD_LIMIT];
    char *block;
    /* the body, by layers: HTTP's length or chunks, and aws-chunked in it */
    bool http_chunked, aws_chunked, http_ended, aws_ended;
    size_t http_left, aws_left;
};

static bool argument(struct request *r, const char *name, char *into) {
    size_t length = strlen(name);
    for (char *at = r->query; *at;) {
        size_t size = strcspn(at, "&");
        if (!strncmp(at, name, length) && (at[length] == '=' || length == size)) {
            size_t skip = length + (at[length] == '=');
            size_t rest = size > skip ? size - skip : 0;
            if (into) {
                if (rest >= KEY_LIMIT)
                    rest = KEY_LIMIT - 1;
                memcpy(into, at + skip, rest);
                into[rest] = 0;
                percent_decode(into, true);
            }
            return true;
        }
        at += size + (at[size] == '&');
    }
    return false;
}

static bool raw_line(struct conn *c, char *into, size_t most) {
    size_t size = 0;
    for (;;) {
        char one;
        if (c->start == c->end) { /* fill the buffer: lines are read byte by byte */
            ssize_t got = raw_read(c, c->head, HEAD_LIMIT - 1);
            if (got <= 0)
                return false;
            c->start = 0;
            c->end = (size_t)got;
        }
        one = c->head[c->start++];
        if (one == '\n')
            break;
        if (size + 1 < most)
            into[size++] = one;
    }
    if (size && into[size - 1] == '\r')
        size--;
    into[size] = 0;
    return true;
}

/* Bytes of the HTTP body: at least one, 0 at its end, -1 for a broken connection. */
static ssize_t http_some(struct request *r, char *into, size_t most) {
    char line[1024];
    if (r->http_ended)
        return 0;
    if (!r->http_left && r->http_chunked) {
        if (!raw_line(r->c, line, sizeof line))
            return -1;
        r->http_left = strtoul(line, NULL, 16);
        if (!r->http_left)
            while (raw_line(r->c, line, sizeof line) && *line)
                ;
    }
    if (!r->http_left) {
        r->http_ended = true;
        return 0;
    }
    ssize_t got = read_some(r->c, into, most < r->http_left ? most : r->http_left);
    if (got <= 0)
        return -1;
    r->http_left -= (size_t)got;
    if (!r->http_left && r->http_chunked && !raw_line(r->c, line, sizeof line))
        return -1;
    return got;
}

static bool aws_line(struct request *r, char *into, size_t most) {
    size_t size = 0;
    char one;
    ssize_t got;
    while ((got = http_some(r, &one, 1)) == 1 && one != '\n')
        if (one != '\r' && size + 1 < most)
            into[size++] = one;
    into[size] = 0;
    return got == 1;
}

/* Bytes of the object in the body; as http_some. */
static ssize_t body_some(struct request *r, char *into, size_t most) {
    char line[4096];
    if (!r->aws_chunked)
        return http_some(r, into, most);
    if (r->aws_ended)
        return 0;
    if (!r->aws_left) {
        if (!aws_line(r, line, sizeof line))
            return -1;
        r->aws_left = strtoul(line, NULL, 16);
        if (!r->aws_left) { /* the trailers follow */
            ssize_t got;
            while ((got = http_some(r, into, most)) > 0)
                ;
            r->aws_ended = true;
            return got;
        }
    }
    ssize_t got = http_some(r, into, most < r->aws_left ? most : r->aws_left);
    if (got <= 0)
        return -1;
    r->aws_left -= (size_t)got;
    if (!r->aws_left && !aws_line(r, line, sizeof line))
        return -1;
    return got;
}

/* The whole body, kept if it is small or all is kept; false for a broken connection. */
static bool take(struct request *r, struct blob *blob, bool keep) {
    char value[32];
    const char *length = r->aws_chunked ? "x-amz-decoded-content-length" : "content-length";
    bool known = header(r->head, length, value, sizeof value);
    size_t room = known ? strtoul(value, NULL, 10) : 0;
    *blob = (struct blob){0};
    keep = keep || keep_all || room <= SMALL;
    if (keep)
        blob->bytes = new_bytes(room);
    for (;;) {
        if (keep && !known && room == blob->size) {
            room = 2 * room + BLOCK;
            blob->bytes = realloc(blob->bytes, sizeof *blob->bytes + room + 1);
        }
        bool fits = keep && room > blob->size;
        ssize_t got = fits ? body_some(r, blob->bytes->data + blob->size, room - blob->size)
                           : body_some(r, r->block, BLOCK);
        if (got < 0) {
            release(blob->bytes);
            return false;
        }
        if (!got)
            break;
        blob->size += (size_t)got;
        atomic_fetch_add(&received, (unsigned long)got);
    }
    if (keep)
        blob->bytes->data[blob->size < room ? blob->size : room] = 0;
    set_etag(blob);
    return true;
}

static int answer(struct request *r, int status, const char *headers, const char *type,
                  const char *body, size_t size) {
    static const struct {
        int status;
        const char *reason;
    } reasons[] = {{200, "OK"},        {204, "No Content"},          {206, "Partial Content"},
                   {400, "Bad Request"}, {404, "Not Found"},         {409, "Conflict"},
                   {412, "Precondition Failed"}, {416, "Range Not Satisfiable"},
                   {501, "Not Implemented"}};
    const char *reason = "-";
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        if (reasons[i].status == status)
            reason = reasons[i].reason;
    struct text out = {0};
    say(&out, "HTTP/1.1 %d %s\r\nServer: nullstore\r\nx-amz-request-id: %lx\r\n%s", status, reason,
        atomic_fetch_add(&serial, 1), headers ? headers : "");
    if (type)
        say(&out, "Content-Type: %s\r\n", type);
    if (status != 204)
        say(&out, "Content-Length: %zu\r\n", size);
    say(&out, "\r\n");
    bool with_body = strcmp(r->method, "HEAD") && status != 204;
    if (with_body && size && size < 16 << 10) { /* one packet for a small answer */
        out.at = realloc(out.at, out.size + size);
        memcpy(out.at + out.size, body, size);
        out.size += size;
        with_body = false;
    }
    int failed = write_all(r->c, out.at, out.size);
    free(out.at);
    if (!failed && with_body && size)
        failed = write_all(r->c, body, size);
    return failed;
}

static int answer_xml(struct request *r, int status, struct text *text) {
    int failed = answer(r, status, NULL, "application/xml", text->at, text->size);
    free(text->at);
    return failed;
}

#define XML "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
#define NS " xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\""

static int refuse(struct request *r, int status, const char *code) {
    struct text out = {0};
    say(&out, XML "<Error><Code>%s</Code><Message>%s</Message>", code, code);
    if (status == 412)
        say(&out, "<Condition>If-None-Match</Condition>");
    say_xml(&out, "Resource", r->key);
    say(&out, "<RequestId>0</RequestId></Error>");
    return answer_xml(r, status, &out);
}

static char *kept_headers(const char *head) {
    struct text out = {0};
    say(&out, "%s", "");
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, "x-amz-meta-", 11) || !strncasecmp(line + 2, "content-type:", 13))
            say(&out, "%.*s\r\n", (int)strcspn(line + 2, "\r"), line + 2);
    return out.at;
}

static void say_checksums(struct text *out, const char *head) {
    static const char *const names[] = {"x-amz-checksum-crc32", "x-amz-checksum-crc32c",
                                        "x-amz-checksum-crc64nvme", "x-amz-checksum-sha256",
                                        "x-amz-checksum-sha1"};
    char value[128];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (header(head, names[i], value, sizeof value))
            say(out, "%s: %s\r\n", names[i], value);
}

/* -- objects ---------------------------------------------------------------------------------- */

static bool only_new(struct request *r) {
    char value[16];
    return header(r->head, "if-none-match", value, sizeof value) && !strcmp(value, "*");
}

/* What x-amz-copy-source names, with a reference of its own; its bytes cut to the range, if any. */
static bool copied(struct request *r, struct blob *blob, char **headers) {
    char name[KEY_LIMIT + 1] = "/", value[64];
    header(r->head, "x-amz-copy-source", name + 1, KEY_LIMIT);
    percent_decode(name, false);
    char *key = name[1] == '/' ? name + 1 : name;
    key[strcspn(key, "?")] = 0;
    pthread_mutex_lock(&lock);
    struct object *object = find(key);
    if (object) {
        *blob = object->blob;
        hold(blob->bytes);
        *headers = strdup(object->headers);
    }
    pthread_mutex_unlock(&lock);
    size_t first, last;
    if (object && header(r->head, "x-amz-copy-source-range", value, sizeof value) &&
        sscanf(value, "bytes=%zu-%zu", &first, &last) == 2) {
        struct bytes *whole = blob->bytes;
        blob->size = last - first + 1;
        if (whole) {
            blob->bytes = new_bytes(blob->size);
            memcpy(blob->bytes->data, whole->data + first, blob->size);
            release(whole);
        }
        set_etag(blob);
    }
    return object != NULL;
}

static int answer_copy(struct request *r, const char *name, const struct blob *blob) {
    struct text out = {0};
    say(&out, XML "<%s" NS "><ETag>&quot;%s&quot;</ETag>", name, blob->etag);
    say_time(&out, time(NULL));
    say(&out, "</%s>", name);
    return answer_xml(r, 200, &out);
}

static int put_object(struct request *r) {
    struct blob blob;
    char value[8], *headers = NULL;
    bool is_copy = header(r->head, "x-amz-copy-source", value, sizeof value);
    if (is_copy ? !copied(r, &blob, &headers) : !take(r, &blob, false))
        return is_copy ? refuse(r, 404, "NoSuchKey") : -1;
    if (!headers)
        headers = kept_headers(r->head);
    pthread_mutex_lock(&lock);
    bool stored = store(r->key, blob, headers, only_new(r));
    pthread_mutex_unlock(&lock);
    free(headers);
    if (!stored)
        return refuse(r, 412, "PreconditionFailed");
    if (is_copy)
        return answer_copy(r, "CopyObjectResult", &blob);
    struct text out = {0};
    say(&out, "ETag: \"%s\"\r\n", blob.etag);
    say_checksums(&out, r->head);
    int failed = answer(r, 200, out.at, NULL, NULL, 0);
    free(out.at);
    return failed;
}

static int get_object(struct request *r) {
    pthread_mutex_lock(&lock);
    struct object *object = find(r->key);
    struct blob blob = {0};
    char *kept = NULL;
    if (object) {
        blob = object->blob;
        hold(blob.bytes);
        kept = strdup(object->headers);
    }
    pthread_mutex_unlock(&lock);
    if (!object)
        return refuse(r, 404, "NoSuchKey");
    bool is_head = !strcmp(r->method, "HEAD");
    size_t first = 0, last = blob.size - 1;
    int status = 200;
    char value[64], when[64];
    if (header(r->head, "range", value, sizeof value) && !strncmp(value, "bytes=", 6)) {
        char *dash;
        status = 206;
        if (value[6] == '-') {
            size_t tail = strtoul(value + 7, NULL, 10);
            first = tail < blob.size ? blob.size - tail : 0;
        } else {
            first = strtoul(value + 6, &dash, 10);
            if (dash[0] == '-' && dash[1] && strtoul(dash + 1, NULL, 10) < last)
                last = strtoul(dash + 1, NULL, 10);
        }
    }
    int failed;
    if (status == 206 && (first >= blob.size || first > last)) {
        failed = refuse(r, 416, "InvalidRange");
    } else if (!is_head && !blob.bytes) {
        failed = refuse(r, 501, "NotImplemented");
    } else {
        struct text out = {0};
        struct tm parts;
        strftime(when, sizeof when, "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&blob.modified, &parts));
        say(&out, "ETag: \"%s\"\r\nLast-Modified: %s\r\nAccept-Ranges: bytes\r\n%s", blob.etag, when,
            kept);
        if (status == 206)
            say(&out, "Content-Range: bytes %zu-%zu/%zu\r\n", first, last, blob.size);
        failed = answer(r, status, out.at, strcasestr(kept, "content-type:") ? NULL : "binary/octet-stream",
                        blob.bytes ? blob.bytes->data + first : NULL, last - first + 1);
        free(out.at);
    }
    release(blob.bytes);
    free(kept);
    return failed;
}

static int delete_object(struct request *r) {
    pthread_mutex_lock(&lock);
    drop(r->key);
    pthread_mutex_unlock(&lock);
    return answer(r, 204, NULL, NULL, NULL, 0);
}

static int delete_many(struct request *r) {
    struct blob body;
    if (!take(r, &body, true))
        return -1;
    struct text out = {0};
    bool quiet = strstr(body.bytes->data, "<Quiet>true</Quiet>");
    char *at = body.bytes->data, *name;
    say(&out, XML "<DeleteResult" NS ">");
    pthread_mutex_lock(&lock);
    while ((name = next_element(&at, "Key"))) {
        char key[2 * KEY_LIMIT];
        snprintf(key, sizeof key, "%s/%s", r->key, name);
        drop(key);
        if (!quiet) {
            say(&out, "<Deleted>");
            say_xml(&out, "Key", name);
            say(&out, "</Deleted>");
        }
        free(name);
    }
    pthread_mutex_unlock(&lock);
    say(&out, "</DeleteResult>");
    release(body.bytes);
    return answer_xml(r, 200, &out);
}

static int list(struct request *r) {
    char prefix[KEY_LIMIT] = "", after[KEY_LIMIT] = "", delimiter[KEY_LIMIT] = "";
    char value[KEY_LIMIT] = "", from[2 * KEY_LIMIT], group[KEY_LIMIT] = "";
    bool second = argument(r, "list-type", value);
    argument(r, "prefix", prefix);
    argument(r, "delimiter", delimiter);
    if (!argument(r, "continuation-token", after) && !argument(r, "start-after", after))
        argument(r, "marker", after);
    size_t most = argument(r, "max-keys", value) ? strtoul(value, NULL, 10) : 1000;
    most = most > 1000 ? 1000 : most;
    size_t bucket = strlen(r->key) + 1, count = 0, length = strlen(prefix);
    snprintf(from, sizeof from, "%s/%s", r->key, strcmp(after, prefix) > 0 ? after : prefix);
    struct text out = {0};
    bool truncated = false;
    const char *last = "";
    char last_key[KEY_LIMIT] = "";
    say(&out, XML "<ListBucketResult" NS ">");
    say_xml(&out, "Name", r->key + 1);
    say_xml(&out, "Prefix", prefix);
    pthread_mutex_lock(&lock);
    for (size_t i = place(from); i < object_count; i++) {
        struct object *object = objects[i];
        if (strncmp(object->key, r->key, bucket - 1) || object->key[bucket - 1] != '/')
            break;
        const char *key = object->key + bucket;
        if (strncmp(key, prefix, length))
            break;
        if (*after && (strcmp(key, after) <= 0 || (*delimiter && after[strlen(after) - 1] == '/' &&
                                                  !strncmp(key, after, strlen(after)))))
            continue;
        char *cut = *delimiter ? strstr(key + length, delimiter) : NULL;
        size_t size = cut ? (size_t)(cut - key) + strlen(delimiter) : 0;
        if (cut && *group && strlen(group) == size && !strncmp(group, key, size))
            continue;
        if (count == most) {
            truncated = true;
            break;
        }
        count++;
        if (cut) {
            snprintf(group, sizeof group, "%.*s", (int)size, key);
            say(&out, "<CommonPrefixes>");
            say_xml(&out, "Prefix", group);
            say(&out, "</CommonPrefixes>");
            last = group;
        } else {
            say(&out, "<Contents>");
            say_xml(&out, "Key", key);
            say_time(&out, object->blob.modified);
            say(&out, "<ETag>&quot;%s&quot;</ETag><Size>%zu</Size>", object->blob.etag,
                object->blob.size);
            say(&out, "<StorageClass>STANDARD</StorageClass></Contents>");
            last = key;
        }
        snprintf(last_key, sizeof last_key, "%s", last);
    }
    pthread_mutex_unlock(&lock);
    say(&out, "<MaxKeys>%zu</MaxKeys><IsTruncated>%s</IsTruncated>", most,
        truncated ? "true" : "false");
    if (second)
        say(&out, "<KeyCount>%zu</KeyCount>", count);
    if (truncated)
        say_xml(&out, second ? "NextContinuationToken" : "NextMarker", last_key);
    say(&out, "</ListBucketResult>");
    return answer_xml(r, 200, &out);
}

/* -- multipart -------------------------------------------------------------------------------- */

static int start_upload(struct request *r) {
    struct upload *upload = calloc(1, sizeof *upload);
    sprintf(upload->id, "%032lx", atomic_fetch_add(&serial, 1) + 1);
    upload->key = strdup(r->key);
    upload->headers = kept_headers(r->head);
    upload->started = time(NULL);
    pthread_mutex_lock(&lock);
    upload->next = uploads;
    uploads = upload;
    pthread_mutex_unlock(&lock);
    char *slash = strchr(r->key + 1, '/');
    struct text out = {0};
    say(&out, XML "<InitiateMultipartUploadResult" NS "><Bucket>%.*s</Bucket>",
        (int)(slash - r->key - 1), r->key + 1);
    say_xml(&out, "Key", slash + 1);
    say_xml(&out, "UploadId", upload->id);
    say(&out, "</InitiateMultipartUploadResult>");
    return answer_xml(r, 200, &out);
}

static int put_part(struct request *r, const char *id, int number) {
    struct blob blob;
    char value[8], *headers = NULL;
    bool is_copy = header(r->head, "x-amz-copy-source", value, sizeof value);
    if (is_copy ? !copied(r, &blob, &headers) : !take(r, &blob, false))
        return is_copy ? refuse(r, 404, "NoSuchKey") : -1;
    free(headers);
    pthread_mutex_lock(&lock);
    struct upload *upload = find_upload(id);
    if (upload)
        store_part(upload, number, blob);
    pthread_mutex_unlock(&lock);
    if (!upload) {
        release(blob.bytes);
        return refuse(r, 404, "NoSuchUpload");
    }
    if (is_copy)
        return answer_copy(r, "CopyPartResult", &blob);
    struct text out = {0};
    say(&out, "ETag: \"%s\"\r\n", blob.etag);
    say_checksums(&out, r->head);
    int failed = answer(r, 200, out.at, NULL, NULL, 0);
    free(out.at);
    return failed;
}

/* The object that the parts named in `list` make; false where one is missing. */
static bool joined(struct upload *upload, char *list, struct blob *blob) {
    char *at = list, *number;
    size_t count = 0;
    bool kept = true;
    *blob = (struct blob){0};
    while ((number = next_element(&at, "PartNumber"))) {
        struct part *part = find_part(upload, atoi(number));
        free(number);
        if (!part)
            return false;
        blob->size += part->blob.size;
        kept = kept && part->blob.bytes;
        count++;
    }
    if (kept && count) {
        size_t done = 0;
        blob->bytes = new_bytes(blob->size);
        for (at = list; (number = next_element(&at, "PartNumber")); free(number)) {
            struct part *part = find_part(upload, atoi(number));
            memcpy(blob->bytes->data + done, part->blob.bytes->data, part->blob.size);
            done += part->blob.size;
        }
    }
    sprintf(blob->etag, "%032lx-%zu", atomic_fetch_add(&serial, 1) + 1, count);
    return count > 0;
}

static int complete(struct request *r, const char *id) {
    struct blob body, blob;
    if (!take(r, &body, true))
        return -1;
    pthread_mutex_lock(&lock);
    struct upload *upload = find_upload(id);
    int status = !upload ? 404 : !joined(upload, body.bytes->data, &blob) ? 400 : 200;
    if (status == 200 && !store(r->key, blob, upload->headers, only_new(r)))
        status = 412;
    if (status == 200)
        end_upload(upload);
    pthread_mutex_unlock(&lock);
    release(body.bytes);
    if (status != 200)
        return refuse(r, status, status == 404   ? "NoSuchUpload"
                                 : status == 400 ? "InvalidPart"
                                                 : "PreconditionFailed");
    struct text out = {0};
    char *slash = strchr(r->key + 1, '/');
    say(&out, XML "<CompleteMultipartUploadResult" NS ">");
    say_xml(&out, "Location", r->key);
    say(&out, "<Bucket>%.*s</Bucket>", (int)(slash - r->key - 1), r->key + 1);
    say_xml(&out, "Key", slash + 1);
    say(&out, "<ETag>&quot;%s&quot;</ETag></CompleteMultipartUploadResult>", blob.etag);
    return answer_xml(r, 200, &out);
}

static int abort_upload(struct request *r, const char *id) {
    pthread_mutex_lock(&lock);
    struct upload *upload = find_upload(id);
    if (upload)
        end_upload(upload);
    pthread_mutex_unlock(&lock);
    return upload ? answer(r, 204, NULL, NULL, NULL, 0) : refuse(r, 404, "NoSuchUpload");
}

static int list_uploads(struct request *r) {
    char prefix[KEY_LIMIT] = "", from[2 * KEY_LIMIT];
    argument(r, "prefix", prefix);
    snprintf(from, sizeof from, "%s/%s", r->key, prefix);
    struct text out = {0};
    say(&out, XML "<ListMultipartUploadsResult" NS ">");
    say_xml(&out, "Bucket", r->key + 1);
    say_xml(&out, "Prefix", prefix);
    say(&out, "<MaxUploads>1000</MaxUploads><IsTruncated>false</IsTruncated>");
    pthread_mutex_lock(&lock);
    for (struct upload *at = uploads; at; at = at->next) {
        if (strncmp(at->key, from, strlen(from)))
            continue;
        char when[40];
        struct tm parts;
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S.000Z", gmtime_r(&at->started, &parts));
        say(&out, "<Upload>");
        say_xml(&out, "Key", at->key + strlen(r->key) + 1);
        say_xml(&out, "UploadId", at->id);
        say(&out, "<StorageClass>STANDARD</StorageClass><Initiated>%s</Initiated></Upload>", when);
    }
    pthread_mutex_unlock(&lock);
    say(&out, "</ListMultipartUploadsResult>");
    return answer_xml(r, 200, &out);
}

static int list_parts(struct request *r, const char *id) {
    char value[KEY_LIMIT];
    int after = argument(r, "part-number-marker", value) ? atoi(value) : 0;
    int most = argument(r, "max-parts", value) ? atoi(value) : 1000;
    int count = 0, last = 0;
    bool truncated = false;
    most = most > 1000 ? 1000 : most;
    struct text out = {0};
    pthread_mutex_lock(&lock);
    struct upload *upload = find_upload(id);
    if (upload) {
        char *slash = strchr(upload->key + 1, '/');
        say(&out, XML "<ListPartsResult" NS "><Bucket>%.*s</Bucket>", (int)(slash - upload->key - 1),
            upload->key + 1);
        say_xml(&out, "Key", slash + 1);
        say_xml(&out, "UploadId", id);
        for (size_t i = 0; i < upload->count; i++) {
            struct part *part = &upload->parts[i];
            if (part->number <= after)
                continue;
            if (count == most) {
                truncated = true;
                break;
            }
            count++;
            last = part->number;
            say(&out, "<Part><PartNumber>%d</PartNumber>", part->number);
            say_time(&out, part->blob.modified);
            say(&out, "<ETag>&quot;%s&quot;</ETag><Size>%zu</Size></Part>", part->blob.etag,
                part->blob.size);
        }
        say(&out, "<PartNumberMarker>%d</PartNumberMarker><MaxParts>%d</MaxParts>", after, most);
        if (truncated)
            say(&out, "<NextPartNumberMarker>%d</NextPartNumberMarker>", last);
        say(&out, "<IsTruncated>%s</IsTruncated></ListPartsResult>", truncated ? "true" : "false");
    }
    pthread_mutex_unlock(&lock);
    return upload ? answer_xml(r, 200, &out) : refuse(r, 404, "NoSuchUpload");
}

/* -- routes ----------------------------------------------------------------------------------- */

static int skip_body(struct request *r) {
    ssize_t got;
    while ((got = http_some(r, r->block, BLOCK)) > 0)
        ;
    return (int)got;
}

static int our_own(struct request *r) {
    struct text out = {0};
    if (!strcmp(r->key, "/__clear")) {
        pthread_mutex_lock(&lock);
        while (object_count)
            drop(objects[object_count - 1]->key);
        while (uploads)
            end_upload(uploads);
        pthread_mutex_unlock(&lock);
    }
    say(&out, "%lu\n", atomic_load(&received));
    int failed = answer(r, 200, NULL, "text/plain", out.at, out.size);
    free(out.at);
    return failed;
}

static int on_bucket(struct request *r) {
    struct text out = {0};
    if (!strcmp(r->method, "GET")) {
        if (argument(r, "uploads", NULL))
            return list_uploads(r);
        if (argument(r, "location", NULL)) {
            say(&out, XML "<LocationConstraint" NS "/>");
            return answer_xml(r, 200, &out);
        }
        if (argument(r, "versioning", NULL)) {
            say(&out, XML "<VersioningConfiguration" NS "/>");
            return answer_xml(r, 200, &out);
        }
        return list(r);
    }
    if (!strcmp(r->method, "POST") && argument(r, "delete", NULL))
        return delete_many(r);
    return skip_body(r) ? -1 : answer(r, 200, "x-amz-bucket-region: us-east-1\r\n", NULL, NULL, 0);
}

static int on_object(struct request *r) {
    char id[KEY_LIMIT], number[KEY_LIMIT];
    bool in_upload = argument(r, "uploadId", id);
    if (!strcmp(r->method, "PUT")) {
        if (in_upload && argument(r, "partNumber", number))
            return put_part(r, id, atoi(number));
        return put_object(r);
    }
    if (!strcmp(r->method, "POST")) {
        if (in_upload)
            return complete(r, id);
        if (argument(r, "uploads", NULL))
            return skip_body(r) ? -1 : start_upload(r);
        return skip_body(r) ? -1 : refuse(r, 501, "NotImplemented");
    }
    if (!strcmp(r->method, "DELETE"))
        return in_upload ? abort_upload(r, id) : delete_object(r);
    return in_upload ? list_parts(r, id) : get_object(r);
}

/* -1 where the connection is over. */
static int serve_one(struct request *r) {
    char target[HEAD_LIMIT], value[64];
    if (read_head(r->c, r->head) < 0 || sscanf(r->head, "%7s %65535s", r->method, target) != 2)
        return -1;
    size_t path = strcspn(target, "?");
    snprintf(r->query, sizeof r->query, "%s", target[path] ? target + path + 1 : "");
    target[path] = 0;
    percent_decode(target, false);
    snprintf(r->key, sizeof r->key, "%.*s", KEY_LIMIT - 1, target);
    r->http_chunked = header(r->head, "transfer-encoding", value, sizeof value);
    r->http_left = header(r->head, "content-length", value, sizeof value) ? strtoul(value, NULL, 10) : 0;
    r->http_ended = !r->http_chunked && !r->http_left;
    r->aws_chunked = (header(r->head, "content-encoding", value, sizeof value) &&
                      strstr(value, "aws-chunked")) ||
                     (header(r->head, "x-amz-content-sha256", value, sizeof value) &&
                      !strncmp(value, "STREAMING-", 10));
    r->aws_left = 0;
    r->aws_ended = false;
    if (header(r->head, "expect", value, sizeof value) &&
        write_all(r->c, "HTTP/1.1 100 Continue\r\n\r\n", 25))
        return -1;
    int failed;
    if (!strncmp(r->key, "/__", 3)) {
        failed = our_own(r);
    } else {
        char *slash = strchr(r->key + 1, '/');
        if (slash && !slash[1])
            *slash = 0, slash = NULL;
        failed = slash ? on_object(r) : on_bucket(r);
    }
    bool closing = header(r->head, "connection", value, sizeof value) && !strcasecmp(value, "close");
    return failed || closing ? -1 : skip_body(r);
}

static void *serve(void *argument) {
    struct conn *c = argument;
    struct request *r = calloc(1, sizeof *r);
    r->c = c;
    r->block = malloc(BLOCK);
    if (tls) {
        c->ssl = SSL_new(tls);
        SSL_set_fd(c->ssl, c->fd);
    }
    if (!c->ssl || SSL_accept(c->ssl) == 1)
        while (!serve_one(r))
            ;
    if (c->ssl) {
        SSL_shutdown(c->ssl);
        SSL_free(c->ssl);
    }
    close(c->fd);
    free(r->block);
    free(r);
    free(c);
    return NULL;
}

int main(int count, char **given) {
    int port = 0, one = 1;
    const char *cert = NULL, *key = NULL;
    for (int i = 1; i < count; i++) {
        if (!strcmp(given[i], "--keep"))
            keep_all = true;
        else if (!strcmp(given[i], "--port") && i + 1 < count)
            port = atoi(given[++i]);
        else if (!strcmp(given[i], "--cert") && i + 1 < count)
            cert = given[++i];
        else if (!strcmp(given[i], "--key") && i + 1 < count)
            key = given[++i];
        else
            die("unknown option");
    }
    signal(SIGPIPE, SIG_IGN);
    if (cert) {
        tls = SSL_CTX_new(TLS_server_method());
        if (SSL_CTX_use_certificate_chain_file(tls, cert) != 1 ||
            SSL_CTX_use_PrivateKey_file(tls, key, SSL_FILETYPE_PEM) != 1)
            die("certificate");
    }
    int listener = listen_and_tell(port);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&small, 1 << 20);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct conn *c = calloc(1, sizeof *c);
        c->fd = fd;
        pthread_t thread;
        if (pthread_create(&thread, &small, serve, c))
            die("thread");
    }
}
