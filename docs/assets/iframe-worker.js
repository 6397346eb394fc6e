// Search in pages opened from disk, where browsers allow no workers: the script of the worker runs in
// a hidden frame, which has the functions of a worker that it uses.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.scope = frame.contentWindow
      this.scope.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.scope.importScripts = (...urls) =>
        urls.reduce((before, src) => before.then(() => this.run(src)), Promise.resolve())
      this.ready = this.run(url)
    }
    run(src) {
      const script = Object.assign(this.scope.document.createElement("script"), { src })
      this.scope.document.body.append(script)
      return new Promise((resolve, reject) => Object.assign(script, { onload: resolve, onerror: reject }))
    }
    postMessage(data) {
      this.ready.then(() => this.scope.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {}
  }
  window.Worker = window.IFrameWorker
}
