/**
 * The header of a model file, read and checked before llama.cpp sees the file: what llama.cpp
 * asserts, or reads without looking, is refused here with a sentence.
 */
@NullMarked
package dev.kvasir.internal.llama.gguf;

import org.jspecify.annotations.NullMarked;
