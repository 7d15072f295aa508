# Tollstream as a container: built in one image, run in another that has neither compiler nor sources.
FROM rust:1.95-slim-bookworm AS build
# librdkafka is compiled along and links the system's OpenSSL.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libssl-dev make pkg-config zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin tollstream \
    && install -D target/release/tollstream /out/tollstream

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/tollstream --create-home tollstream
COPY --from=build /out/tollstream /usr/local/bin/tollstream
# What is declared in files: topics, models, schemas, migrations.
COPY topology /usr/share/tollstream/topology
COPY schemas /usr/share/tollstream/schemas
USER tollstream
WORKDIR /usr/share/tollstream
# Facade; admin and metrics.
EXPOSE 4000 4001
ENTRYPOINT ["tollstream"]
CMD ["run", "--roles", "facade,processor,projection,sink"]
