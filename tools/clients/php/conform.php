<?php
// Answers tools/conformance.py: `pack HEX` with that msgpack read and written again,
// `send HEX` with the server's reply to these bytes.

ini_set("msgpack.php_only", "0");
set_error_handler(fn($_, $message) => throw new ErrorException($message));
$socket = new ZMQSocket(new ZMQContext(), ZMQ::SOCKET_REQ);
$socket->setSockOpt(ZMQ::SOCKOPT_LINGER, 0);
$socket->connect($argv[1]);
echo "PHP ", PHP_VERSION, ", msgpack ", phpversion("msgpack"), ", libzmq ", ZMQ::LIBZMQ_VER, "\n";
while ($line = fgets(STDIN)) {
    [$verb, $hex] = explode(" ", rtrim($line, "\n"));
    $bytes = hex2bin($hex);
    try {
        $pack = $verb === "pack";
        $reply = $pack ? msgpack_pack(msgpack_unpack($bytes)) : $socket->send($bytes)->recv();
        echo bin2hex($reply), "\n";
    } catch (Exception $e) {
        echo "! ", strtr($e->getMessage(), "\n", " "), "\n";
    }
}
