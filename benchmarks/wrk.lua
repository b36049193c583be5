-- One request, the same for all: BENCH_BODY names a file, BENCH_HEADERS is "Name: value" a line. Ends with JSON.
local body = assert(io.open(assert(os.getenv("BENCH_BODY")), "rb"))
wrk.method = "POST"
wrk.body = body:read("*a")
body:close()
for line in assert(os.getenv("BENCH_HEADERS")):gmatch("[^\n]+") do
  local name, value = line:match("^(%S+): (.+)$")
  wrk.headers[name] = value
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "microseconds": %d, "p50_us": %d, "p99_us": %d, "status_errors": %d, "socket_errors": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
