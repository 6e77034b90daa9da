package dev.kvasir.internal.llama;

/**
 * The life of a native handle that several threads share: live; releasing, when it was closed but
 * is still used; closed, when its memory is gone. Whoever uses the handle holds it meanwhile, for
 * the length of a call or of the life of a child.
 */
final class HandleState {
  private final Runnable free;
  private boolean closing;
  private int holders;

  HandleState(Runnable free) {
    this.free = free;
  }

  /** Holds the handle; false when it was closed. */
  synchronized boolean hold() {
    if (closing) {
      return false;
    }
    holders++;
    return true;
  }

  /** Gives a hold back. The last one to do so after {@link #close()} frees the handle. */
  void release() {
    boolean last;
    synchronized (this) {
      holders--;
      last = closing && holders == 0;
    }
    if (last) {
      free.run();
    }
  }

  /**
   * Lets no one else hold the handle, and frees it now or when the last holder lets go. A second
   * call does nothing.
   */
  void close() {
    boolean last;
    synchronized (this) {
      last = !closing && holders == 0;
      closing = true;
    }
    if (last) {
      free.run();
    }
  }
}
