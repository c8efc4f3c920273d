// The page's words: English in the source, Chinese for browsers that speak it.

const CHINESE = {
  "Load": "负载",
  "Models in memory": "内存中的模型",
  "What for": "用途",
  "Model": "模型",
  "Preload": "预加载",
  "Unload": "卸载",
  "Try a photo": "试一张照片",
  "Drop a photo here, paste one, or choose a file": "把照片拖到这里、粘贴，或选择文件",
  "A text to compare with the photo": "与照片比较的文字",
  "Compare": "比较",
  "CLIP, photos": "CLIP，照片",
  "CLIP, texts": "CLIP，文字",
  "faces, detection": "人脸，检测",
  "faces, recognition": "人脸，识别",
  "OCR, detection": "OCR，检测",
  "OCR, recognition": "OCR，识别",
  "Faces": "人脸",
  "OCR": "OCR",
  "CLIP": "CLIP",
  "answers/s": "每秒应答",
  "waiting": "等待中",
  "in hand": "处理中",
  "memory": "内存",
  "GPU memory": "显存",
  "most: {0}": "最高：{0}",
  "well; up for {0}": "正常；已运行 {0}",
  "no answer from the server": "服务器没有应答",
  "{0} worker restarts": "工作进程重启 {0} 次",
  "No worker is running: it starts with the next request.": "没有工作进程在运行：下一个请求会启动它。",
  "worker {0}, device {1}": "工作进程 {0}，设备 {1}",
  "loading for {0} s": "已加载 {0} 秒",
  "no model yet": "尚无模型",
  "in use": "使用中",
  "stays": "常驻",
  "Loading {0}: this may download it first": "正在加载 {0}：可能要先下载",
  "Loaded {0}": "已加载 {0}",
  "Unloading {0}": "正在卸载 {0}",
  "Unloaded {0}": "已卸载 {0}",
  "on disk": "已在磁盘上",
  "to be downloaded": "需要下载",
  "Working on it": "处理中",
  "Choose at least one task": "请至少选择一项任务",
  "The browser cannot show this format; the server can read it": "浏览器无法显示这种格式，但服务器可以读取",
  "lines of text: {0}": "文字行：{0}",
  "faces: {0}": "人脸：{0}",
  "face": "人脸",
  "round trip": "往返",
  "decode": "解码",
  "load": "加载",
  "preprocess": "预处理",
  "queue": "排队",
  "inference": "推理",
  "postprocess": "后处理",
  "{0} dimensions": "{0} 维",
  "{0} d {1} h": "{0} 天 {1} 小时",
  "{0} h {1} min": "{0} 小时 {1} 分",
  "{0} min {1} s": "{0} 分 {1} 秒",
  "{0} s": "{0} 秒",
  "the network broke off": "网络中断",
};

const words = navigator.language.toLowerCase().startsWith("zh") ? CHINESE : {};

/** Return a text in the browser's language, with values for {0}, {1}, … */
export function t(text, ...values) {
  return (words[text] ?? text).replace(/\{(\d)\}/g, (_, index) => values[index]);
}

/** Translate what the HTML marks. */
export function translate() {
  document.documentElement.lang = words === CHINESE ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.textContent);
  for (const element of document.querySelectorAll("[data-t-label]")) element.ariaLabel = t(element.ariaLabel);
}

/** Return a number of bytes in megabytes or gigabytes. */
export function bytes(count) {
  return count < 1e9 ? `${(count / 1e6).toFixed(count < 1e7 ? 1 : 0)} MB` : `${(count / 1e9).toFixed(2)} GB`;
}

/** Return a number of seconds in its two largest units. */
export function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s >= 86400) return t("{0} d {1} h", Math.floor(s / 86400), Math.floor((s % 86400) / 3600));
  if (s >= 3600) return t("{0} h {1} min", Math.floor(s / 3600), Math.floor((s % 3600) / 60));
  return s >= 60 ? t("{0} min {1} s", Math.floor(s / 60), s % 60) : t("{0} s", s);
}
