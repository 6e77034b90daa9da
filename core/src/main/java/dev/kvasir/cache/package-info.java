/**
 * What a KV cache keeps: policies ({@link dev.kvasir.cache.CachePolicy}), the profile of a prompt
 * that FastGen chooses by ({@link dev.kvasir.cache.Profile}) and that of Foresight ({@link
 * dev.kvasir.cache.LossProfile}), and reports of what is held ({@link
 * dev.kvasir.cache.CacheReport}).
 *
 * <p>Everything here is an immutable value and may be shared between threads.
 */
@NullMarked
package dev.kvasir.cache;

import org.jspecify.annotations.NullMarked;
