/** llama.cpp and Kvasir's native library behind plain Java objects. */
@NullMarked
package dev.kvasir.internal.llama;

import org.jspecify.annotations.NullMarked;
