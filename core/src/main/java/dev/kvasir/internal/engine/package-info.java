/** What sessions ask of the engine that computes for them. */
@NullMarked
package dev.kvasir.internal.engine;

import org.jspecify.annotations.NullMarked;
