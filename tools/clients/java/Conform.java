// Answers tools/conformance.py: `pack HEX` with that msgpack read and written again,
// `send HEX` with the server's reply to these bytes.

import java.util.*;
import org.msgpack.core.MessagePack;
import org.zeromq.ZMQ;

class Conform {
    static byte[] packed(byte[] bytes) throws Exception {
        var unpacker = MessagePack.newDefaultUnpacker(bytes);
        var packer = MessagePack.newDefaultBufferPacker();
        packer.packValue(unpacker.unpackValue());
        return packer.toByteArray();
    }

    public static void main(String[] args) {
        ZMQ.Socket socket = ZMQ.context(1).socket(ZMQ.REQ);
        socket.setLinger(0);
        socket.connect(args[0]);
        var java = System.getProperty("java.version");
        System.out.println("Java " + java + ", jeromq for libzmq " + ZMQ.getVersionString());
        for (var in = new Scanner(System.in); in.hasNextLine(); ) {
            String[] line = in.nextLine().split(" ", 2);
            byte[] bytes = HexFormat.of().parseHex(line[1]);
            try {
                boolean send = line[0].equals("send") && socket.send(bytes);
                byte[] reply = send ? socket.recv() : packed(bytes);
                System.out.println(HexFormat.of().formatHex(reply));
            } catch (Exception e) {
                System.out.println("! " + e);
            }
        }
        System.exit(0);
    }
}
