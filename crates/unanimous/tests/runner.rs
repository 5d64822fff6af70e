#[cfg(feature = "axum")]
mod http_axum;
#[cfg(feature = "axum")]
mod http_disconnect;
#[cfg(feature = "http")]
mod http_layer;
#[cfg(feature = "http")]
mod http_support;
#[cfg(feature = "http")]
mod http_veto;
