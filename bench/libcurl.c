/*-------------------------------------------------------------------------
 *
 * libcurl.c
 *		What a program gets that leaves SMTP to libcurl.
 *
 * libcurl multi PORT MESSAGES CONNECTIONS OCTETS
 *		Many mails in one multi handle, over as many connections as it is allowed;
 *		prints the seconds that it took.
 * libcurl commit PORT MAILS OCTETS CONNINFO
 *		The floor of latency: one row in a table "one", committed durably, then a
 *		mail on an open connection.  For each mail a line: its recipient, and
 *		CLOCK_MONOTONIC before the COMMIT and after it.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include <curl/curl.h>
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct Mail
{
	CURL	   *easy;
	struct curl_slist *recipient;
	size_t		read;
} Mail;

static char *content;
static size_t content_length;
static char url[64];

static double
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void
fail(const char *what)
{
	fprintf(stderr, "libcurl: %s\n", what);
	exit(1);
}

/* A header, and lines of 64 that do not compress. */
static void
make_content(size_t octets)
{
	content = malloc(octets + 256);
	content_length = sprintf(content, "From: app@example.com\r\nTo: ana@example.com\r\nSubject: Hi\r\n\r\n");
	while (content_length < octets)
	{
		for (int i = 0; i < 8; i++)
			content_length += sprintf(content + content_length, "%08lx", random());
		content_length += sprintf(content + content_length, "\r\n");
	}
}

static size_t
read_content(char *to, size_t size, size_t count, void *data)
{
	Mail	   *mail = data;
	size_t		length = content_length - mail->read;

	if (length > size * count)
		length = size * count;
	memcpy(to, content + mail->read, length);
	mail->read += length;
	return length;
}

static size_t
ignore(char *from, size_t size, size_t count, void *data)
{
	(void) from;
	(void) data;
	return size * count;
}

/* A mail to this recipient by the same handle. */
static void
prepare(Mail *mail, const char *recipient)
{
	if (!mail->easy)
	{
		mail->easy = curl_easy_init();
		curl_easy_setopt(mail->easy, CURLOPT_URL, url);
		curl_easy_setopt(mail->easy, CURLOPT_MAIL_FROM, "<app@example.com>");
		curl_easy_setopt(mail->easy, CURLOPT_READFUNCTION, read_content);
		curl_easy_setopt(mail->easy, CURLOPT_READDATA, mail);
		curl_easy_setopt(mail->easy, CURLOPT_WRITEFUNCTION, ignore);
		curl_easy_setopt(mail->easy, CURLOPT_UPLOAD, 1L);
		curl_easy_setopt(mail->easy, CURLOPT_PRIVATE, mail);
	}
	curl_slist_free_all(mail->recipient);
	mail->recipient = curl_slist_append(NULL, recipient);
	curl_easy_setopt(mail->easy, CURLOPT_MAIL_RCPT, mail->recipient);
	mail->read = 0;
}

static void
multi(int messages, int connections)
{
	CURLM	   *multi = curl_multi_init();
	Mail	   *mails = calloc(connections, sizeof(Mail));
	double		start = now();
	int			begun = 0;
	int			done = 0;
	char		recipient[64];

	curl_multi_setopt(multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long) connections);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) connections);
	for (int i = 0; i < connections && begun < messages; i++)
	{
		snprintf(recipient, sizeof(recipient), "<r%d@example.com>", begun++);
		prepare(&mails[i], recipient);
		curl_multi_add_handle(multi, mails[i].easy);
	}
	while (done < messages)
	{
		int			running;
		int			left;
		CURLMsg    *message;

		curl_multi_perform(multi, &running);
		while ((message = curl_multi_info_read(multi, &left)))
		{
			CURL	   *easy = message->easy_handle;
			Mail	   *mail;

			if (message->msg != CURLMSG_DONE)
				continue;
			if (message->data.result != CURLE_OK)
				fail(curl_easy_strerror(message->data.result));
			done++;
			curl_easy_getinfo(easy, CURLINFO_PRIVATE, (char **) &mail);
			curl_multi_remove_handle(multi, easy);
			if (begun < messages)
			{
				snprintf(recipient, sizeof(recipient), "<r%d@example.com>", begun++);
				prepare(mail, recipient);
				curl_multi_add_handle(multi, easy);
			}
		}
		if (done < messages)
			curl_multi_poll(multi, NULL, 0, 1000, NULL);
	}
	printf("%.3f\n", now() - start);
}

static void
run(PGconn *connection, const char *statement)
{
	PGresult   *result = PQexec(connection, statement);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		fail(PQerrorMessage(connection));
	PQclear(result);
}

static void
commit(int mails, const char *conninfo)
{
	PGconn	   *connection = PQconnectdb(conninfo);
	Mail		mail = {0};
	char	   *insert = malloc(content_length + 256);

	if (PQstatus(connection) != CONNECTION_OK)
		fail(PQerrorMessage(connection));
	for (int n = 0; n <= mails; n++)
	{
		char		recipient[64];
		double		start;
		double		committed;

		/* The first one opens the connection, and is not counted. */
		snprintf(recipient, sizeof(recipient), "f%d@example.com", n);
		sprintf(insert, "INSERT INTO one (recipient, body) VALUES ('%s', '%s')", recipient, content);
		prepare(&mail, recipient);
		run(connection, "BEGIN");
		run(connection, insert);
		start = now();
		run(connection, "COMMIT");
		committed = now();
		if (curl_easy_perform(mail.easy) != CURLE_OK)
			fail("the mail did not leave");
		if (n > 0)
			printf("%s %.6f %.6f\n", recipient, start, committed);
		nanosleep(&(struct timespec) {.tv_nsec = 5000000 + random() % 5000000}, NULL);
	}
	PQfinish(connection);
	curl_easy_cleanup(mail.easy);
}

int
main(int argc, char **argv)
{
	curl_global_init(CURL_GLOBAL_ALL);
	if (argc == 6)
		snprintf(url, sizeof(url), "smtp://127.0.0.1:%d/bench.example", atoi(argv[2]));
	if (argc == 6 && strcmp(argv[1], "multi") == 0)
	{
		make_content(atoi(argv[5]));
		multi(atoi(argv[3]), atoi(argv[4]));
	}
	else if (argc == 6 && strcmp(argv[1], "commit") == 0)
	{
		make_content(atoi(argv[4]));
		commit(atoi(argv[3]), argv[5]);
	}
	else
		return fprintf(stderr, "see the head of libcurl.c\n"), 2;
	return 0;
}
