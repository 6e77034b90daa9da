package dev.kvasir.internal.llama;

import dev.kvasir.ExitingException;
import dev.kvasir.bindings.generated.NativeApi;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.locks.LockSupport;

/**
 * Lets the JVM exit only between two native computations. At exit the C library destroys the static
 * objects of every loaded library; threads of ggml that still compute would read them and crash.
 */
final class ExitGuard {
  /** What does not ask whether to go on may take long; after this the JVM exits all the same. */
  private static final long PATIENCE_NANOS = TimeUnit.SECONDS.toNanos(30);

  private static final AtomicInteger COMPUTING = new AtomicInteger();
  private static volatile boolean exiting;

  private ExitGuard() {}

  /** To be called once, before the first computation. */
  static void install() {
    Runtime.getRuntime().addShutdownHook(new Thread(ExitGuard::awaitIdle, "kvasir-exit"));
  }

  /**
   * Before a computation; {@link #leave} must follow.
   *
   * @throws ExitingException if the JVM exits; then it must not
   */
  static void enter() {
    if (!tryEnter()) {
      throw new ExitingException();
    }
  }

  /** As {@link #enter}, but says false when the JVM exits. */
  static boolean tryEnter() {
    COMPUTING.incrementAndGet();
    if (exiting) {
      COMPUTING.decrementAndGet();
      return false;
    }
    return true;
  }

  /** After it. */
  static void leave() {
    COMPUTING.decrementAndGet();
  }

  /** Whether computations are to be given up. */
  static boolean exiting() {
    return exiting;
  }

  private static void awaitIdle() {
    ExitHolds.await();
    exiting = true;
    NativeApi.kvasir_abandon(1);
    long deadline = System.nanoTime() + PATIENCE_NANOS;
    while (COMPUTING.get() > 0 && System.nanoTime() < deadline) {
      LockSupport.parkNanos(TimeUnit.MILLISECONDS.toNanos(1));
    }
  }
}
