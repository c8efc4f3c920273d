# docker buildx bake [cpu|openvino|cuda]: the images, for this machine.
# The workflow .github/workflows/images.yml gives the variables, builds for all platforms and pushes.

variable "IMAGE" {
  default = "immich-ml-compat"
}

variable "VERSION" {
  default = "0.1.0"
}

# The commit that is built, and where its source is.
variable "REVISION" {
  default = "unknown"
}

variable "SOURCE" {
  default = ""
}

# What further names for each image begin with beside IMAGE:cpu and so on, comma-separated: 0.1.0 for IMAGE:0.1.0-cpu.
variable "TAG_PREFIXES" {
  default = ""
}

# Of the CPU image, comma-separated; empty: this machine's.
variable "PLATFORMS" {
  default = ""
}

group "default" {
  targets = ["cpu", "cuda"]
}

target "common" {
  args = {
    VERSION  = VERSION
    REVISION = REVISION
  }
  labels = {
    "org.opencontainers.image.created" = timestamp()
    "org.opencontainers.image.source"  = SOURCE
    "org.opencontainers.image.url"     = SOURCE
  }
}

target "cpu" {
  inherits   = ["common"]
  dockerfile = "Dockerfile.cpu"
  target     = "cpu"
  platforms  = compact(split(",", PLATFORMS))
  tags       = concat(["${IMAGE}:cpu"], [for prefix in compact(split(",", TAG_PREFIXES)) : "${IMAGE}:${prefix}-cpu"])
}

target "openvino" {
  inherits   = ["common"]
  dockerfile = "Dockerfile.cpu"
  target     = "openvino"
  tags       = concat(["${IMAGE}:openvino"], [for prefix in compact(split(",", TAG_PREFIXES)) : "${IMAGE}:${prefix}-openvino"])
  platforms  = ["linux/amd64"]
}

target "cuda" {
  inherits   = ["common"]
  dockerfile = "Dockerfile.cuda"
  tags       = concat(["${IMAGE}:cuda"], [for prefix in compact(split(",", TAG_PREFIXES)) : "${IMAGE}:${prefix}-cuda"])
  platforms  = ["linux/amd64"]
}
