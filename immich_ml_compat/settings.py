"""The settings: the stock server's environment variables and this project's own, typed.

Variables are read with the prefix `MACHINE_LEARNING_` (nested ones with `__`), case-insensitive, except
the few that Immich shares between its services. Names nobody knows stop nothing, as in the stock server;
`environment.py` tells of them. The parent stack's names are read where ours are not set (`parent_stack.py`).
"""

import logging
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from . import parent_stack
from .catalog import EMBEDDED_OCR, ModelType, Task

PREFIX = "MACHINE_LEARNING_"

_SECRETS = {f"{PREFIX}ACCESS_TOKEN", f"{PREFIX}MT_PHOTOS_API_KEY"}

# Immich's own words for levels (its server is a NestJS program) beside Python's.
_LOG_LEVELS = {
    "fatal": logging.CRITICAL,
    "critical": logging.CRITICAL,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "log": logging.INFO,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "verbose": logging.DEBUG,
}


class ConfigurationError(Exception):
    """A setting that cannot be used; the message names the variable, its value unless secret, and what it takes."""


def _log_level(value: object) -> object:
    if isinstance(value, str):
        try:
            return _LOG_LEVELS[value.lower()]
        except KeyError:
            raise ValueError(f"takes one of {', '.join(_LOG_LEVELS)}") from None
    return value


def _comma_separated(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:  # `~nobody`
        raise ValueError(str(error)) from error


def _folder(path: Path) -> Path:
    path = _absolute(path)
    if path.exists() and not path.is_dir():
        raise ValueError("is a file, takes a folder")
    return path


def _token(token: SecretStr) -> SecretStr:
    """Refuse what a client would escape in a path, or take for a part of it (`.`), and what no head has room for."""
    value = token.get_secret_value()
    if not re.fullmatch(r"[A-Za-z0-9._~+=-]{1,256}", value) or value in (".", ".."):
        raise ValueError(
            "takes 1 to 256 letters, digits and -._~+= (it stands in a URL); make one with `openssl rand -hex 32`"
        )
    return token


def _api_key(key: SecretStr) -> SecretStr:
    """Refuse what no header can hold as it is."""
    if not re.fullmatch(r"[!-~]{1,256}", key.get_secret_value()):
        raise ValueError("takes 1 to 256 printable ASCII characters, no blank among them")
    return key


Folder = Annotated[Path, AfterValidator(_folder)]
File = Annotated[Path, AfterValidator(_absolute)]
LogFormat = Literal["text", "json"]
DeviceId = Annotated[int, Field(ge=0)]
BatchSize = Annotated[int, Field(ge=1)]


class MaxBatchSize(BaseModel):
    """The most items one inference call takes on a GPU, by task; None leaves it to the task. On a CPU it takes one."""

    facial_recognition: BatchSize | None = None
    ocr: BatchSize | None = None


class ClipPreload(BaseModel):
    """CLIP models to load at start, comma-separated."""

    textual: str = ""
    visual: str = ""


class DetectorPreload(BaseModel):
    """Face or OCR models to load at start, comma-separated."""

    detection: str = ""
    recognition: str = ""


class Preload(BaseModel):
    """Models that are loaded at start and stay, by task and type."""

    clip: ClipPreload = ClipPreload()
    facial_recognition: DetectorPreload = DetectorPreload()
    ocr: DetectorPreload = DetectorPreload()

    def models(self) -> list[tuple[Task, ModelType, str]]:
        """Return the task, type and name of each."""
        names = [
            (Task.CLIP, ModelType.TEXTUAL, self.clip.textual),
            (Task.CLIP, ModelType.VISUAL, self.clip.visual),
            (Task.FACES, ModelType.DETECTION, self.facial_recognition.detection),
            (Task.FACES, ModelType.RECOGNITION, self.facial_recognition.recognition),
            (Task.OCR, ModelType.DETECTION, self.ocr.detection),
            (Task.OCR, ModelType.RECOGNITION, self.ocr.recognition),
        ]
        return [
            (task, kind, name.strip()) for task, kind, listed in names for name in listed.split(",") if name.strip()
        ]


class Settings(BaseSettings):
    """Everything that can be configured."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        frozen=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    cache_folder: Folder = Path("~/.cache/immich_ml")
    """Where models lie, as `<task>/<name>/…`; `~` is the home folder."""

    model_aliases: dict[str, str] = {}
    """Names answered by another model of the same task, as a JSON object."""

    clip_model: str | None = None
    """The model that answers every CLIP request for a name of equal dimension; None: the one asked for."""

    clip_download_root: Folder | None = None
    """Where the parent stack kept the official Chinese-CLIP checkpoints: looked for there before downloading."""

    model_source: Literal["huggingface", "modelscope"] = "huggingface"
    """The hub that is asked first for a model that several have; the others are asked where it fails."""

    engine: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """What models run in; `auto` goes by what the machine has, and the log says why (`engines.py`)."""

    device: Literal["auto", "cpu", "cuda", "openvino-gpu"] = "auto"
    """Where models run: `auto` is the GPU where the installed ONNX Runtime was built for one."""

    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """What models compute in; `auto` is the fastest that the chosen engine has there."""

    device_ids: Annotated[tuple[DeviceId, ...], NoDecode, BeforeValidator(_comma_separated)] = (0,)
    """The GPUs to use, comma-separated; each has workers of its own."""

    workers: int = Field(default=1, ge=1, le=64)
    """Inference processes per device."""

    worker_timeout: int = Field(default=300, ge=0)
    """Seconds a model may take to load before its worker is taken for hung; 0: any."""

    worker_heartbeat_timeout_s: float = Field(default=30, gt=1, le=3600)
    """Seconds of silence after which a worker is taken for hung."""

    model_ttl: int = 300
    """Seconds without use after which a model is unloaded; 0 or less: never."""

    text_model_ttl: int | None = None
    """The same for CLIP's text towers alone, which a person waits for."""

    model_ttl_poll_s: float = Field(default=10, gt=0, le=3600)
    """Seconds between looks at the models' times."""

    memory_budget_mb: int | None = Field(default=None, ge=1)
    """The most megabytes that the models of a worker may take, by their files' sizes."""

    preload: Preload = Preload()
    """Models that are loaded at start and stay."""

    model_intra_op_threads: int = Field(default=0, ge=0, le=1024)
    """Threads of one run of a graph on the CPU; 0: one under load, all cores where nothing else is to be done."""

    model_inter_op_threads: int = Field(default=0, ge=0, le=1024)
    """Operators of one run that ONNX Runtime runs side by side; 0 is 1."""

    model_arena: bool = True
    """Whether the engine keeps a memory arena: faster, but its memory is not given back."""

    request_threads: int | None = Field(default=None, ge=0, le=1024)
    """Photos worked on side by side in a worker; further ones wait, and a search passes them. 0 counts as 1.

    None: one more than can be in their graphs at once; as many as fill a batch twice on a GPU.
    """

    max_batch_size: MaxBatchSize = MaxBatchSize()

    ocr_orientation: bool = True
    """Whether OCR looks for pages that lie upside down or on their side (for requests that do not say)."""

    http_keepalive_timeout_s: int = Field(default=2, ge=0)
    """Seconds an idle connection stays open."""

    header_timeout_s: float = Field(default=30, gt=0, le=3600)
    """Seconds a client has to send a request's head, and may be silent in its body."""

    max_body_mb: int = Field(default=64, ge=1, le=100_000)
    """The most megabytes of a request's body."""

    queue_mb: int = Field(default=512, ge=1, le=1_000_000)
    """The most megabytes of bodies that are held; further ones wait in their sockets."""

    max_image_pixels: int = Field(default=178_956_970, ge=1, le=178_956_970)
    """The most pixels of a photo; not beyond Pillow's own limit, which holds inside its decoders too."""

    shutdown_timeout: int = Field(default=8, ge=0, le=3600)
    """Seconds that requests have to be finished once the server is told to stop."""

    access_token: Annotated[SecretStr, AfterValidator(_token)] | None = None
    """What a request must carry to be answered; None: everybody is answered."""

    tls_cert: File | None = None
    """The server's certificate with those between it and its authority, in PEM form; None: no TLS."""

    tls_key: File | None = None
    """The certificate's private key, in PEM form."""

    ui: bool = False
    """Whether there is a page at `/ui`."""

    mt_photos: bool = False
    """Whether MT Photos' API is answered, too."""

    mt_photos_port: int = Field(default=8060, ge=0, le=65535)
    """The port for it; the server's own port will do as well."""

    mt_photos_api_key: Annotated[SecretStr, AfterValidator(_api_key)] | None = None
    """What its requests must carry as `api-key`; None: only those of this machine are answered."""

    mt_photos_clip_model: str | None = None
    """The CLIP model that answers them; None: CLIP_MODEL, or Chinese-CLIP ViT-B-16."""

    mt_photos_ocr_model: str = EMBEDDED_OCR
    """The OCR model that answers them."""

    mt_photos_face_model: str = "buffalo_l"
    """The face model that answers them."""

    mt_photos_face_min_score: float = Field(default=0.65, ge=0, le=1)
    """The least score of a face there."""

    legacy_ocr: bool = False
    """Whether the parent stack's patched Immich is answered in its gateway's dialect."""

    log_format: LogFormat = "text"
    """The form of log lines."""

    host: str = Field(default="[::]", validation_alias="IMMICH_HOST")
    port: int = Field(default=3003, ge=0, le=65535, validation_alias="IMMICH_PORT")
    log_level: Annotated[int, BeforeValidator(_log_level)] = Field(
        default=logging.INFO, validation_alias="IMMICH_LOG_LEVEL"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the environment, and the parent stack's names in it as if they were ours."""
        parents = EnvSettingsSource(settings_cls)
        parents.env_vars = {
            reading.variable.today.lower(): reading.meaning
            for reading in parent_stack.readings(os.environ)
            if reading.meaning is not None
        }
        return init_settings, env_settings, parents


def load_settings() -> Settings:
    """Read the settings from the environment. Raises ConfigurationError for a value that cannot be used."""
    try:
        return Settings()
    except SettingsError as error:
        # The only text pydantic-settings parses itself is JSON; its message names the field, not the variable.
        variable, value = _unparsed(PREFIX + str(error).split('"')[1].upper())
        raise ConfigurationError(f"{variable}={value}: is not a JSON object") from error
    except ValidationError as error:
        raise ConfigurationError("\n".join(_explain(e["loc"], e["input"], e["msg"]) for e in error.errors())) from error
    except ValueError as error:  # a value of the parent stack's
        raise ConfigurationError(str(error)) from error


def _unparsed(name: str) -> tuple[str, str]:
    """Return the variable of a field, or of a part of it (`NAME__PART`), whose value is not the JSON it should be."""
    variables = {variable.upper(): value for variable, value in os.environ.items()}
    parts = {variable: value for variable, value in variables.items() if variable.startswith(f"{name}__")}
    # The shortest name: its own parts take plain text.
    return (name, variables[name]) if name in variables else min(parts.items(), key=lambda item: len(item[0]))


def _explain(location: tuple[int | str, ...], value: object, message: str) -> str:
    name = "__".join(part for part in location if isinstance(part, str)).upper()
    variable = name if name.startswith("IMMICH_") else PREFIX + name
    given = {
        reading.variable.today: reading.assignment
        for reading in parent_stack.readings(os.environ)
        if reading.meaning is not None
    }
    shown = given.get(variable, variable if variable in _SECRETS else f"{variable}={value}")
    return f"{shown}: {message.removeprefix('Value error, ')}"
