//! `tollstream topics tail`.
