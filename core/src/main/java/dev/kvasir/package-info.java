/**
 * Models, sessions and replies: the public API of Kvasir. Policies and profiles live in {@link
 * dev.kvasir.cache}.
 */
@NullMarked
package dev.kvasir;

import org.jspecify.annotations.NullMarked;
