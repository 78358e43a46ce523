<?php
// A client of zkv in PHP. It needs the extensions zmq and msgpack:
//
//   apt-get install php-cli php-zmq php-msgpack      # or: pecl install zmq-beta msgpack
//   php client.php [tcp://127.0.0.1:5757]

class Zkv
{
    const WAITS_MS = [250, 500, 1000, 2000, 4000]; // for a reply, attempt by attempt
    private ?ZMQSocket $socket = null;
    private int $seq = 0;

    public function __construct(private string $endpoint, private string $session)
    {
        $this->write(["op" => "txn", "then" => []]); // opens the session; may be done twice
    }

    /** A write happens once, however often it is sent. */
    public function write(array $request): array
    {
        return $this->ask($request + ["session" => $this->session, "seq" => ++$this->seq]);
    }

    /** The reply; that of a failure has `error` and `message`. */
    public function ask(array $request): array
    {
        foreach (self::WAITS_MS as $wait) {
            if ($reply = $this->exchange(msgpack_pack($request), $wait)) {
                return msgpack_unpack($reply);
            }
            if (($request["seq"] ?? 1) > 1) {
                $request["retry"] = true;
            }
        }
        throw new RuntimeException("no reply: whether it was done is not known");
    }

    private function exchange(string $body, int $wait): string|false
    {
        $this->socket ??= (new ZMQSocket(new ZMQContext(), ZMQ::SOCKET_REQ))
            ->connect($this->endpoint);
        $this->socket->setSockOpt(ZMQ::SOCKOPT_LINGER, 0);
        $this->socket->setSockOpt(ZMQ::SOCKOPT_RCVTIMEO, $wait);
        $reply = $this->socket->send($body)->recv();
        if ($reply === false) {
            $this->socket = null; // a REQ that waits for a reply cannot send: the next is a new one
        }
        return $reply;
    }
}

$zkv = new Zkv($argv[1] ?? "tcp://127.0.0.1:5757", bin2hex(random_bytes(16)));
$ada = ["name" => "Ada", "langs" => ["en", "fr"]];
$put = $zkv->write(["op" => "put", "key" => "user:1", "value" => $ada]);
echo "put user:1: version $put[version]\n";
$user = $zkv->ask(["op" => "get", "key" => "user:1"])["value"];
echo "get user:1: $user[name] speaks ", implode(", ", $user["langs"]), "\n";
$bob = $zkv->write(["op" => "put", "key" => "user:1", "value" => "Bob", "if" => ["version" => 0]]);
echo "put user:1 if version 0: $bob[error], it has version $bob[version]\n";
echo "incr visits: ", $zkv->write(["op" => "incr", "key" => "visits"])["value"], "\n";
$nobody = $zkv->ask(["op" => "get", "key" => "nobody"]);
echo $nobody["ok"] ? "" : "get nobody: $nobody[error], $nobody[message]\n";
