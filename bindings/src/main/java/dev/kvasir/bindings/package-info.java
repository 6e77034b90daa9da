/** Finding and loading the native libraries behind {@link dev.kvasir.bindings.generated}. */
@NullMarked
package dev.kvasir.bindings;

import org.jspecify.annotations.NullMarked;
