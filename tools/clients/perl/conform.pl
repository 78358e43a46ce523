# Answers tools/conformance.py: `pack HEX` with that msgpack read and written again,
# `send HEX` with the server's reply to these bytes.

use v5.36;
use Data::MessagePack;
use ZMQ::FFI qw(ZMQ_REQ);

my $msgpack = Data::MessagePack->new->utf8;
my $context = ZMQ::FFI->new;
my $socket  = $context->socket(ZMQ_REQ);
$socket->set_linger(0);
$socket->connect($ARGV[0]);
$| = 1;
say "Perl ", $^V =~ s/v//r, ", Data::MessagePack $Data::MessagePack::VERSION, libzmq ",
    join '.', $context->version;
while (<STDIN>) {
    my ($verb, $hex) = split;
    my $bytes = pack 'H*', $hex // '';
    my $reply = eval {
        return $msgpack->pack($msgpack->unpack($bytes)) if $verb eq 'pack';
        $socket->send($bytes);
        return $socket->recv;
    };
    say defined $reply ? unpack 'H*', $reply : '! ' . $@ =~ s/ at \S+ line.*//sr;
}
