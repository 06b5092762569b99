//! The pool's signed statements, compared with the proxy's own count.
