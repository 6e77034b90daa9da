package dev.kvasir;

/** Hears how far the loading of a model has come, on the thread that loads, and may end it. */
@FunctionalInterface
public interface LoadListener {
  /**
   * Called many times while a model loads.
   *
   * @param fraction of the tensor data that is loaded, 0 to 1
   * @return whether to go on; false makes {@link Model#load} throw {@link LoadCancelledException}
   */
  boolean loaded(double fraction);
}
