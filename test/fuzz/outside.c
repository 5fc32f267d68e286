/*-------------------------------------------------------------------------
 *
 * outside.c
 *		The part of PostgreSQL that the pure modules need and the frontend
 *		libraries lack, with memory that ends with each input.
 *
 * palloc() and its kin stand in the place of the frontend libraries', so that
 * whatever an input left is freed after it: a server's memory context does so,
 * a fuzzer that runs for hours must.  Each chunk is one malloc(), so that the
 * address sanitizer sees its ends.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "fuzz.h"

#include "../unit/outside.h"

typedef struct Chunk
{
	struct Chunk *next;
	struct Chunk *previous;
	Size		size;
} Chunk;

#define CHUNK_HEADER MAXALIGN(sizeof(Chunk))

static Chunk chunks = {&chunks, &chunks, 0};

void
fuzz_free_all(void)
{
	while (chunks.next != &chunks)
		pfree((char *) chunks.next + CHUNK_HEADER);
}

char *
fuzz_text(const uint8 **data, Size *size)
{
	const uint8 *end = *size > 0 ? memchr(*data, '\0', *size) : NULL;
	Size		length = end ? end - *data : *size;
	char	   *text = palloc(length + 1);

	memcpy(text, *data, length);
	text[length] = '\0';
	*data += length + (end ? 1 : 0);
	*size -= length + (end ? 1 : 0);
	return text;
}

void
fuzz_check(bool ok, const char *what, const char *file, int line)
{
	if (ok)
		return;
	fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
	abort();
}

void *
palloc(Size size)
{
	Chunk	   *chunk = malloc(CHUNK_HEADER + size);

	if (chunk == NULL)
		abort();
	chunk->size = size;
	chunk->next = chunks.next;
	chunk->previous = &chunks;
	chunks.next->previous = chunk;
	chunks.next = chunk;
	return (char *) chunk + CHUNK_HEADER;
}

void
pfree(void *pointer)
{
	Chunk	   *chunk = (Chunk *) ((char *) pointer - CHUNK_HEADER);

	chunk->next->previous = chunk->previous;
	chunk->previous->next = chunk->next;
	free(chunk);
}

void *
palloc0(Size size)
{
	return memset(palloc(size), 0, size);
}

void *
palloc_extended(Size size, int flags)
{
	return flags & MCXT_ALLOC_ZERO ? palloc0(size) : palloc(size);
}

/* Always to another place, so that a pointer kept across it is found out. */
void *
repalloc(void *pointer, Size size)
{
	Chunk	   *chunk = (Chunk *) ((char *) pointer - CHUNK_HEADER);
	void	   *moved = palloc(size);

	memcpy(moved, pointer, Min(size, chunk->size));
	pfree(pointer);
	return moved;
}

char *
pnstrdup(const char *string, Size length)
{
	char	   *copy;

	length = strnlen(string, length);
	copy = palloc(length + 1);
	memcpy(copy, string, length);
	copy[length] = '\0';
	return copy;
}

char *
pstrdup(const char *string)
{
	return pnstrdup(string, strlen(string));
}

MemoryContext
AllocSetContextCreateInternal(MemoryContext parent, const char *name, Size min, Size init, Size max)
{
	return (MemoryContext) &chunks;
}

void *
MemoryContextAlloc(MemoryContext context, Size size)
{
	return palloc(size);
}

/* What stands in it ends with the input. */
void
MemoryContextDelete(MemoryContext context)
{
}

void
ExceptionalCondition(const char *condition,
#if PG_VERSION_NUM < 160000
					 const char *type,
#endif
					 const char *file, int line)
{
	fuzz_check(false, condition, file, line);
	abort();
}
