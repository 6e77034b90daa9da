package dev.kvasir.bindings;

import java.util.Locale;

/**
 * The operating system and processor, spelled as in the classifier of the native jar, for example
 * {@code linux-x86_64}.
 *
 * @param os {@code linux}, {@code macos}, {@code windows}, or what {@code os.name} says
 * @param arch {@code x86_64}, {@code aarch64}, or what {@code os.arch} says
 */
record Platform(String os, String arch) {

  static Platform current() {
    return of(System.getProperty("os.name"), System.getProperty("os.arch"));
  }

  static Platform of(String osName, String osArch) {
    String name = osName.toLowerCase(Locale.ROOT);
    String os =
        name.startsWith("mac")
            ? "macos"
            : name.startsWith("windows") ? "windows" : name.replace(' ', '_');
    String arch =
        switch (osArch.toLowerCase(Locale.ROOT)) {
          case "amd64", "x86_64" -> "x86_64";
          case "aarch64", "arm64" -> "aarch64";
          default -> osArch;
        };
    return new Platform(os, arch);
  }

  String classifier() {
    return os + "-" + arch;
  }

  /**
   * A regular expression for the file names of a library, with or without a version in them, or the
   * kind of device that npm's packages put before it.
   */
  String libraryPattern(String name) {
    return switch (os) {
      case "macos" -> "lib" + name + "(\\.v?[0-9.]+)?\\.dylib";
      case "windows" -> name + "(\\.v?[0-9.]+)?\\.dll";
      default -> "lib" + name + "(\\.[a-z]+)?(\\.v[0-9.]+)?\\.so(\\.[0-9]+)*";
    };
  }
}
