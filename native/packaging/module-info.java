/** The native libraries of one platform. They are resources: the module has no packages, its name is what selects it. */
module dev.kvasir.natives {}
