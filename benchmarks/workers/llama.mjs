// node llama.mjs NODE_MODULES MODEL.gguf THREADS: llama.cpp through node-llama-cpp's CPU build.
// Speaks what loop.py describes.
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const [modules, modelPath, threadCount] = process.argv.slice(2);
const threads = Number(threadCount);
const entry = pathToFileURL(`${modules}/node-llama-cpp/dist/index.js`).href;
const {getLlama, LlamaLogLevel} = await import(entry);
const answer = (value) => process.stdout.write(JSON.stringify(value) + "\n");
const clocks = () => {
    const {user, system} = process.cpuUsage();
    return [performance.now() / 1e3, (user + system) / 1e6];
};

const llama = await getLlama({
    gpu: false, build: "never", maxThreads: threads, logLevel: LlamaLogLevel.error,
    logger: (level, message) => process.stderr.write(`${level}: ${message}\n`),
});
const model = await llama.loadModel({modelPath, useMmap: false, gpuLayers: 0});
const context = await model.createContext({contextSize: 4096, batchSize: 2048, threads, sequences: 1});
const sequence = context.getSequence();
answer({ready: true, release: llama.llamaCppRelease.release, system: llama.systemInfo});

for await (const line of createInterface({input: process.stdin})) {
    const {prompt, steps, forced} = JSON.parse(line);
    await sequence.clearHistory();
    const began = clocks();
    const choices = sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true});
    const tokens = [(await choices.next()).value];
    const read = clocks();
    for (let step = 0; step < steps; step++)
        tokens.push((await choices.next(forced ? forced[step] : tokens.at(-1))).value);
    const ended = clocks();
    await choices.return();
    answer({
        tokens,
        prefill_seconds: read[0] - began[0],
        decode_seconds: ended[0] - read[0],
        prefill_cpu_seconds: read[1] - began[1],
        decode_cpu_seconds: ended[1] - read[1],
    });
}
process.exit(0);
