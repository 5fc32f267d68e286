/*-------------------------------------------------------------------------
 *
 * fuzz.h
 *		What the fuzz targets share.
 *
 * A target is LLVMFuzzerTestOneInput() in one file: it feeds a pure module, and
 * HOLDS() says what must be true whatever comes.  It ends with fuzz_free_all().
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef FUZZ_H
#define FUZZ_H

extern int	LLVMFuzzerTestOneInput(const uint8 *data, Size size);

extern void fuzz_free_all(void);

/* The text up to the next NUL of the input, or to its end; palloc'd. */
extern char *fuzz_text(const uint8 **data, Size *size);

extern void fuzz_check(bool ok, const char *what, const char *file, int line);

#define HOLDS(condition) fuzz_check(condition, #condition, __FILE__, __LINE__)

#endif							/* FUZZ_H */
