/**
 * The machinery behind the cache policies: measuring recovery, compacting after a prefill, and
 * holding every head to its policy while decoding. It works on {@link
 * dev.kvasir.internal.policy.CacheStore} and knows nothing of native memory.
 */
@NullMarked
package dev.kvasir.internal.policy;

import org.jspecify.annotations.NullMarked;
