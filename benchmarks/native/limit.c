/*
 * The limit: receive, sha256 in order, send on. What a program pays that does only what must be.
 *
 *     limit --origin HOST:PORT --files LIST (--sink HOST:PORT --prefix /BUCKET/PREFIX | --to FOLDER)
 *           [--threads 4] [--ranges] [--fsync] [--ca FILE]
 *
 * LIST has a line "URL-PATH<tab>NAME<tab>SIZE" for each file. Each thread takes the next file: one
 * GET, hashed and sent on (a PUT of known length, or a file) as it arrives, through a buffer of
 * 256 KiB. With --ranges it takes the next 8 MiB of a file instead: sent on as it arrives (a part of
 * a multipart upload, or a place in the file), and hashed when all before it is; the hash is warm
 * work while it is this range's turn. All connections are kept alive. --ca: TLS on both sides.
 *
 * Prints JSON: wall and CPU seconds, peak MiB, and the sha256 of each file.
 */
#include "net.h"
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#define BLOCK (256 << 10)
#define RANGE (8 << 20)

struct file {
    char *url, *name;
    size_t size, next; /* next: where the next range starts */
    size_t hashed;
    int fd, parts, done;
    char upload[128];
    EVP_MD_CTX *hash;
    char sha256[65];
    char *etags; /* 64 bytes for each part */
};

static struct file *files;
static size_t file_count, next_file, threads = 4;
static struct {
    char host[64];
    int port;
} origin, sink;
static const char *prefix, *folder, *ca;
static bool by_ranges, with_fsync;
static SSL_CTX *tls;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn = PTHREAD_COND_INITIALIZER;

static void connect_to(struct conn *c, const char *host, int port) {
    c->fd = dial(host, port);
    if (!tls)
        return;
    c->ssl = SSL_new(tls);
    SSL_set_fd(c->ssl, c->fd);
    if (SSL_connect(c->ssl) != 1)
        die("TLS");
}

static int ask(struct conn *c, const char *text, char *head) {
    int status;
    if ((text && write_all(c, text, strlen(text))) || read_head(c, head) < 0 ||
        sscanf(head, "HTTP/1.1 %d", &status) != 1)
        die("no answer");
    return status;
}

static size_t read_body(struct conn *c, const char *head, char *into, size_t most) {
    char value[32];
    size_t size = header(head, "content-length", value, sizeof value) ? strtoul(value, NULL, 10) : 0;
    for (size_t done = 0; done < size;) {
        ssize_t got = size < most ? read_some(c, into + done, size - done) : -1;
        if (got <= 0)
            die("answer cut");
        done += (size_t)got;
    }
    into[size] = 0;
    return size;
}

/* Ask for bytes of `file`; how many come. */
static size_t get(struct conn *c, struct file *file, size_t start, size_t end, char *head) {
    char text[4096], value[32], range[80] = "";
    bool part = start || end < file->size;
    if (part)
        sprintf(range, "Range: bytes=%zu-%zu\r\n", start, end - 1);
    snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: %s:%d\r\n%s\r\n", file->url, origin.host,
             origin.port, range);
    if (ask(c, text, head) != (part ? 206 : 200) ||
        !header(head, "content-length", value, sizeof value) ||
        strtoul(value, NULL, 10) != end - start)
        die(head);
    return end - start;
}

static void start_put(struct conn *c, const char *target, size_t size) {
    char text[4096];
    snprintf(text, sizeof text, "PUT %s HTTP/1.1\r\nHost: %s:%d\r\nContent-Length: %zu\r\n\r\n", target,
             sink.host, sink.port, size);
    if (write_all(c, text, strlen(text)))
        die("put");
}

static void to_hex(const unsigned char *digest, char *into) {
    for (int i = 0; i < 32; i++)
        sprintf(into + 2 * i, "%02x", digest[i]);
}

static void file_path(const struct file *file, char *into, size_t most) {
    snprintf(into, most, "%s/%s", folder, file->name);
    for (char *slash = strchr(into + strlen(folder) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(into, 0777);
        *slash = '/';
    }
}

static int create_file(const struct file *file) {
    char path[4096];
    file_path(file, path, sizeof path);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0666);
    if (fd < 0)
        die(path);
    return fd;
}

static void end_file(int fd) {
    if ((with_fsync && fsync(fd)) || close(fd))
        die("close");
}

static void write_at(int fd, const char *from, size_t size, size_t at) {
    while (size) {
        ssize_t done = pwrite(fd, from, size, (off_t)at);
        if (done <= 0)
            die("write");
        from += done;
        at += (size_t)done;
        size -= (size_t)done;
    }
}

/* -- a thread for a file ---------------------------------------------------------------------- */

static void carry_file(struct conn *in, struct conn *out, struct file *file, char *block, char *head) {
    char target[4096];
    unsigned char digest[32];
    size_t left = get(in, file, 0, file->size, head), at = 0;
    int fd = -1;
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    EVP_DigestInit_ex(hash, EVP_sha256(), NULL);
    if (folder) {
        fd = create_file(file);
    } else {
        snprintf(target, sizeof target, "%s/%s", prefix, file->name);
        start_put(out, target, file->size);
    }
    while (left) {
        ssize_t got = read_some(in, block, left < BLOCK ? left : BLOCK);
        if (got <= 0)
            die("cut");
        EVP_DigestUpdate(hash, block, (size_t)got);
        if (folder)
            write_at(fd, block, (size_t)got, at);
        else if (write_all(out, block, (size_t)got))
            die("send");
        at += (size_t)got;
        left -= (size_t)got;
    }
    if (folder)
        end_file(fd);
    else if (ask(out, NULL, head) != 200)
        die(head);
    EVP_DigestFinal_ex(hash, digest, NULL);
    EVP_MD_CTX_free(hash);
    to_hex(digest, file->sha256);
}

/* -- a thread for a range --------------------------------------------------------------------- */

static void start_file(struct conn *out, struct file *file, char *head) {
    char text[4096], body[4096];
    file->hash = EVP_MD_CTX_new();
    EVP_DigestInit_ex(file->hash, EVP_sha256(), NULL);
    file->parts = (int)((file->size + RANGE - 1) / RANGE);
    file->etags = calloc((size_t)file->parts, 64);
    if (folder) {
        file->fd = create_file(file);
        return;
    }
    snprintf(text, sizeof text,
             "POST %s/%s?uploads HTTP/1.1\r\nHost: %s:%d\r\nContent-Length: 0\r\n\r\n", prefix,
             file->name, sink.host, sink.port);
    if (ask(out, text, head) != 200)
        die(head);
    read_body(out, head, body, sizeof body);
    char *id = strstr(body, "<UploadId>");
    if (!id || sscanf(id, "<UploadId>%127[^<]", file->upload) != 1)
        die(body);
}

static void finish_file(struct conn *out, struct file *file, char *head) {
    unsigned char digest[32];
    EVP_DigestFinal_ex(file->hash, digest, NULL);
    EVP_MD_CTX_free(file->hash);
    to_hex(digest, file->sha256);
    if (folder) {
        end_file(file->fd);
        return;
    }
    size_t room = (size_t)file->parts * 160 + 4096, size = 0, top;
    char *text = malloc(2 * room), *body = text + room;
    size = (size_t)sprintf(body, "<CompleteMultipartUpload>");
    for (int i = 0; i < file->parts; i++)
        size += (size_t)sprintf(body + size, "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>",
                                i + 1, file->etags + (size_t)i * 64);
    size += (size_t)sprintf(body + size, "</CompleteMultipartUpload>");
    top = (size_t)snprintf(
        text, room, "POST %s/%s?uploadId=%s HTTP/1.1\r\nHost: %s:%d\r\nContent-Length: %zu\r\n\r\n",
        prefix, file->name, file->upload, sink.host, sink.port, size);
    memmove(text + top, body, size + 1);
    if (ask(out, text, head) != 200)
        die(head);
    char answer[4096];
    read_body(out, head, answer, sizeof answer);
    free(text);
}

/* Hash what there is of the range if its turn has come; `wait` for the turn, or not. */
static size_t hash_on(struct file *file, size_t start, const char *block, size_t from, size_t to,
                      bool wait) {
    pthread_mutex_lock(&lock);
    while (wait && file->hashed < start)
        pthread_cond_wait(&turn, &lock);
    bool ours = file->hashed >= start;
    pthread_mutex_unlock(&lock);
    if (!ours)
        return from;
    EVP_DigestUpdate(file->hash, block + from, to - from);
    return to;
}

static void carry_range(struct conn *in, struct conn *out, struct file *file, size_t start, size_t end,
                        char *block, char *head) {
    char target[4096];
    int number = (int)(start / RANGE);
    size_t size = get(in, file, start, end, head), have = 0, hashed = 0;
    if (!folder) {
        snprintf(target, sizeof target, "%s/%s?partNumber=%d&uploadId=%s", prefix, file->name,
                 number + 1, file->upload);
        start_put(out, target, size);
    }
    while (have < size) {
        ssize_t got = read_some(in, block + have, size - have < BLOCK ? size - have : BLOCK);
        if (got <= 0)
            die("cut");
        if (folder)
            write_at(file->fd, block + have, (size_t)got, start + have);
        else if (write_all(out, block + have, (size_t)got))
            die("send");
        have += (size_t)got;
        hashed = hash_on(file, start, block, hashed, have, false);
    }
    hash_on(file, start, block, hashed, have, true);
    pthread_mutex_lock(&lock);
    file->hashed = end;
    pthread_cond_broadcast(&turn);
    pthread_mutex_unlock(&lock);
    if (!folder && (ask(out, NULL, head) != 200 ||
                    !header(head, "etag", file->etags + (size_t)number * 64, 64)))
        die(head);
    pthread_mutex_lock(&lock);
    bool last = ++file->done == file->parts;
    pthread_mutex_unlock(&lock);
    if (last)
        finish_file(out, file, head);
}

/* -- threads ---------------------------------------------------------------------------------- */

static struct file *take_range(struct conn *out, size_t *start, size_t *end, char *head) {
    struct file *file = NULL;
    pthread_mutex_lock(&lock);
    if (next_file < file_count) {
        file = &files[next_file];
        if (!file->next)
            start_file(out, file, head);
        *start = file->next;
        *end = *start + RANGE < file->size ? *start + RANGE : file->size;
        file->next = *end;
        if (*end == file->size)
            next_file++;
    }
    pthread_mutex_unlock(&lock);
    return file;
}

static struct file *take_file(void) {
    pthread_mutex_lock(&lock);
    struct file *file = next_file < file_count ? &files[next_file++] : NULL;
    pthread_mutex_unlock(&lock);
    return file;
}

static void *work(void *nothing) {
    struct conn *in = calloc(1, sizeof *in), *out = calloc(1, sizeof *out);
    char *block = malloc(by_ranges ? RANGE : BLOCK), *head = malloc(HEAD_LIMIT);
    struct file *file;
    size_t start, end;
    connect_to(in, origin.host, origin.port);
    if (!folder)
        connect_to(out, sink.host, sink.port);
    if (by_ranges)
        while ((file = take_range(out, &start, &end, head)))
            carry_range(in, out, file, start, end, block, head);
    else
        while ((file = take_file()))
            carry_file(in, out, file, block, head);
    return nothing;
}

static void read_list(const char *path) {
    FILE *list = fopen(path, "r");
    char url[2048], name[2048];
    size_t size, room = 0;
    if (!list)
        die(path);
    while (fscanf(list, "%2047[^\t]\t%2047[^\t]\t%zu\n", url, name, &size) == 3) {
        if (file_count == room) {
            room = room ? 2 * room : 64;
            files = realloc(files, room * sizeof *files);
        }
        files[file_count++] = (struct file){.url = strdup(url), .name = strdup(name), .size = size};
    }
    fclose(list);
}

static void parse_host(const char *text, char *host, int *port) {
    if (sscanf(text, "%63[^:]:%d", host, port) != 2)
        die("HOST:PORT");
}

static double seconds(struct timeval time) {
    return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

int main(int count, char **given) {
    for (int i = 1; i < count; i++) {
        const char *name = given[i];
        if (!strcmp(name, "--ranges"))
            by_ranges = true;
        else if (!strcmp(name, "--fsync"))
            with_fsync = true;
        else if (++i == count)
            die("option without a value");
        else if (!strcmp(name, "--origin"))
            parse_host(given[i], origin.host, &origin.port);
        else if (!strcmp(name, "--sink"))
            parse_host(given[i], sink.host, &sink.port);
        else if (!strcmp(name, "--prefix"))
            prefix = given[i];
        else if (!strcmp(name, "--to"))
            folder = given[i];
        else if (!strcmp(name, "--files"))
            read_list(given[i]);
        else if (!strcmp(name, "--threads"))
            threads = strtoul(given[i], NULL, 10);
        else if (!strcmp(name, "--ca"))
            ca = given[i];
        else
            die("unknown option");
    }
    if (ca) {
        tls = SSL_CTX_new(TLS_client_method());
        SSL_CTX_load_verify_locations(tls, ca, NULL);
        SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, NULL);
    }
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    pthread_t pool[64];
    threads = threads < 64 ? threads : 64;
    for (size_t i = 0; i < threads; i++)
        if (pthread_create(&pool[i], NULL, work, NULL))
            die("thread");
    for (size_t i = 0; i < threads; i++)
        pthread_join(pool[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &after);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"wall\": %.4f, \"cpu\": %.4f, \"peak_mib\": %.1f, \"sha256\": {",
           (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) / 1e9,
           seconds(usage.ru_utime) + seconds(usage.ru_stime), (double)usage.ru_maxrss / 1024);
    for (size_t i = 0; i < file_count; i++)
        printf("%s\"%s\": \"%s\"", i ? ", " : "", files[i].name, files[i].sha256);
    printf("}}\n");
    return 0;
}
