"""What this registrar calls itself. The release is the package's version; the build reads it here."""

from ergo_registrar.routes import Version

VERSION = Version(name="ergo_registrar", release="0.1.0", license="MIT")
