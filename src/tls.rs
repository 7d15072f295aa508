//! The one TLS implementation of the process: rustls with ring.

/// Makes ring the process's provider of cryptography; later calls change nothing.
pub fn install_provider() {
    // An error only says that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
