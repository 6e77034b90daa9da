package dev.kvasir;

import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Proxy;
import java.util.Set;
import java.util.function.Supplier;

/**
 * Lets one call fail, of all calls to the objects that it wraps: the n-th, after it was carried out
 * or in its place.
 */
final class Faults {
  private int left = Integer.MAX_VALUE;
  private boolean afterwards;
  private Supplier<? extends Throwable> failure = AssertionError::new;
  private String only = ""; // the method that fails; empty: any
  private String failed = "";

  /** From now on the n-th call fails, counted from 1. */
  void fail(int n, boolean after, Supplier<? extends Throwable> with) {
    only = "";
    left = n;
    afterwards = after;
    failure = with;
    failed = "";
  }

  /** From now on the n-th call of a method fails, in its place. */
  void fail(String method, int n, Supplier<? extends Throwable> with) {
    fail(method, n, false, with);
  }

  /** From now on the n-th call of a method fails, in its place or after it was carried out. */
  void fail(String method, int n, boolean after, Supplier<? extends Throwable> with) {
    fail(n, after, with);
    only = method;
  }

  /** The name of the method that failed; empty if none did. */
  String failed() {
    return failed;
  }

  /**
   * An object that does what another one does, as long as nothing is to fail.
   *
   * @param sound names of methods that never fail and are not counted
   */
  <T> T wrap(Class<T> type, T object, Set<String> sound) {
    return type.cast(
        Proxy.newProxyInstance(
            type.getClassLoader(),
            new Class<?>[] {type},
            (proxy, method, arguments) -> {
              boolean counts =
                  only.isEmpty()
                      ? !sound.contains(method.getName())
                      : only.equals(method.getName());
              boolean now = counts && --left == 0;
              if (now) {
                failed = method.getName();
              }
              if (now && !afterwards) {
                throw failure.get();
              }
              Object result;
              try {
                result = method.invoke(object, arguments);
              } catch (InvocationTargetException e) {
                throw e.getCause();
              }
              if (now) {
                throw failure.get();
              }
              return result;
            }));
  }
}
