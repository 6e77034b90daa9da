/** Files that are written. */
@NullMarked
package dev.kvasir.internal.file;

import org.jspecify.annotations.NullMarked;
